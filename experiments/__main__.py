"""The list of commands."""

import sys

from experiments import process
from experiments.console import run

COMMANDS = {
    "reproduce": "poison teachers, distil with and without defenses, evaluate, write the report",
    "matrix": "methods × triggers × defenses × seeds: a grid that survives crashes, here or on a cluster",
    "teacher": "train one poisoned teacher",
    "teachers": "tabulate a folder of teachers",
    "distill": "distil one student from a teacher, without data",
    "triggers": "list the attacks, or draw them on a data set",
    "evaluate": "ACC, ASR and RA of the network saved in a directory",
    "audit": "signs of a backdoor in a network, without data; how often each is wrong",
    "export": "a run's network as one file for elsewhere: safetensors, StableHLO, ONNX, Flax; with a model card",
    "diagnose": "could poison hide in this data and network?",
    "compile": "what a TPU's or GPU's compiler says of a preset's rounds, without one (extra: tpu)",
    "presets": "list the presets",
    "datasets": "list the data sets, or prepare one",
    "bench": "time our steps and cycles beside eager PyTorch's (extra: torch)",
}

if __name__ == "__main__":
    process.tune()
    sys.exit(run(COMMANDS, sys.argv[1:]))
