"""One of two processes that distil a student together: `python -m tests.training.one_of_two PORT INDEX OUT CYCLES`."""

import dataclasses
import sys
from pathlib import Path

import jax

from abd_jax.training import processes, runs
from abd_jax.training.run_directory import RunDirectory, describe
from tests.training import small


def main(port: str, index: str, out: str, cycles: str) -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    processes.join(f"127.0.0.1:{port}", 2, int(index))
    preset = small.preset(cycles=int(cycles), evaluate_every=3)
    preset = dataclasses.replace(preset, vaccine=dataclasses.replace(preset.vaccine, select=False))
    directory = RunDirectory.open(Path(out), describe(preset), "resume")
    teacher, devices = small.teacher(), processes.over(0)
    assert devices == 4
    runs.distill_student(directory, preset, small.dataset(), teacher, "badnet_sq", "sv", 0, devices=devices)


if __name__ == "__main__":
    main(*sys.argv[1:])
