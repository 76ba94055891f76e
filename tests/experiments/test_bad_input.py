"""Every command, at its edge: what cannot be done is one line, exit code 2, and leaves nothing behind."""

import errno
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import console
from experiments.__main__ import COMMANDS
from tests.networks import network

REPRODUCE = ["reproduce", "digits", "--out", "OUT"]
MATRIX = ["matrix", "digits", "--out", "OUT"]
TEACHER = ["teacher", "digits", "--out", "OUT"]
DIAGNOSE = ["diagnose", "digits", "--out", "OUT", "--overwrite"]
DISTILL = ["distill", "digits", "--out", "OUT", "--teacher"]
WEIGHTLESS = ["--vaccine.student-weights", "none"]
SAID = ["--image-size", "8", "--mean", "0.5", "--std", "0.5"]

BAD_INPUT = [
    ([], None),
    (["reprodce"], "did you mean 'reproduce'"),
    (["reproduce"], "a preset must come first"),
    (["reproduce", "digit"], "did you mean 'digits'"),
    (["reproduce", "mnist"], "preset 'mnist' (a data set; say fashion_mnist --dataset mnist): allowed are cifar10, "),
    (["reproduce", "cifar100"], "preset 'cifar100' (a data set; say cifar10 --dataset cifar100)"),
    (["teacher", "svhn"], "preset 'svhn' (a data set; say cifar10 --dataset svhn_cropped)"),
    (["presets", "mnist"], "say fashion_mnist --dataset mnist"),
    (["reproduce", "--out", "x"], "a preset must come first"),
    (["reproduce", "digits"], "--out"),
    ([*REPRODUCE, "--bogus", "1"], "unknown option --bogus: python -m experiments reproduce digits --help lists"),
    ([*REPRODUCE, "--sedes", "1"], "unknown option --sedes (did you mean --seeds?)"),
    ([*REPRODUCE, "--vacine.alpha", "1"], "unknown option --vacine.alpha (did you mean --vaccine.alpha?)"),
    (
        [*REPRODUCE, "--student.cycle", "1", "--vacine_alpha=1"],
        "--student.cycle (did you mean --student.cycles or --student.clip?), --vacine_alpha (did you mean --va",
    ),
    (["distill", "digits", "--out", "x", "--techer", "y"], "unknown option --techer (did you mean --teacher?)"),
    ([*REPRODUCE, "--resume", "yes"], "yes: belongs to no option"),
    ([*REPRODUCE, "--student.cycles"], "--student.cycles: its value is missing"),
    ([*REPRODUCE, "--seeds", "one"], "--seeds one: allowed are whole numbers separated by spaces"),
    ([*REPRODUCE, "--seeds", "0,1"], "--seeds 0,1: allowed are whole numbers separated by spaces"),
    ([*DISTILL, "x", "--mean=0.5,0.5"], "--mean 0.5,0.5: allowed are numbers separated by spaces"),
    ([*REPRODUCE, "--triggers", "blend,sig"], "--triggers 'blend,sig' (several values are separated by spaces"),
    ([*REPRODUCE, "--defenses", "none,abd"], "--defenses 'none,abd' (several values are separated by spaces"),
    ([*REPRODUCE, "--seeds", "1", "1"], "each value may stand there once"),
    ([*REPRODUCE, "--seeds", "0", "--seeds", "1"], "--seeds: given 2 times; allowed is once, with all of its"),
    (
        [*REPRODUCE, "--student.learning_rate", "1", "--student.learning-rate=2"],
        "--student.learning-rate: given 2",
    ),
    (["bench", "--rounds", "1", "--rounds", "2"], "--rounds: given 2 times"),
    (["evaluate", "NETWORK", "--json", "--json"], "--json: given 2 times"),
    ([*REPRODUCE, "--triggers", "badnet_q"], "did you mean 'badnet_sq'"),
    ([*REPRODUCE, "--trigger", "mosaic"], "allowed are adaptive, all_to_all, badnet_grid"),
    (
        [*REPRODUCE, "--defenses", "abs"],
        "--defenses 'abs' (did you mean 'abl'?): allowed are none, sv, sr, abd, ",
    ),
    ([*REPRODUCE, "--dataset", "cifar11"], "did you mean 'cifar10'"),
    ([*REPRODUCE, "--method", "cmj"], "did you mean 'cmi'"),
    ([*REPRODUCE, "--dtype", "float16"], "--dtype 'float16' (did you mean 'bfloat16'?): allowed are float32, bfloat16"),
    ([*REPRODUCE, "--resume", "--overwrite"], "only one of them"),
    ([*REPRODUCE, "--processes", "2"], "--processes and --process-id: need --coordinator"),
    ([*REPRODUCE, "--coordinator", "here:1", "--processes", "2"], "needs --processes and --process-id"),
    ([*REPRODUCE, "--coordinator", "auto"], "else name HOST:PORT"),
    (["bench", "--parts", "cycles"], "--parts 'cycles' (did you mean 'cycle'?): allowed are training, vaccine"),
    (["bench", "--teacher", "resnet-18"], "--teacher resnet-18: allowed are Wide ResNets"),
    (["bench", "--cmi-batch", "1"], "--cmi-batch 1: allowed are whole numbers from 2"),
    ([*REPRODUCE, "--teacher.architecture", "wrn-11-1"], "wrn-D-W with depth D = 10, 16"),
    ([*REPRODUCE, "--teacher.architecture", "resnet"], "wrn-D-W"),
    ([*REPRODUCE, "--teacher.epochs", "0"], "teacher.epochs 0: allowed are whole numbers from 1"),
    ([*REPRODUCE, "--teacher.poison-rate", "1.5"], r"teacher.poison_rate 1.5: allowed is [0, 1)"),
    ([*REPRODUCE, "--teacher.target", "10"], "allowed are the classes of digits, 0 … 9"),
    ([*REPRODUCE, "--teacher.target", "-1"], "teacher.target -1"),
    ([*REPRODUCE, "--student.architecture", "wrn-10"], "wrn-D-W"),
    ([*REPRODUCE, "--student.cycles", "-3"], "student.cycles -3"),
    ([*REPRODUCE, "--student.batch", "1"], "student.batch 1: allowed are whole numbers 2 … 65536"),
    ([*REPRODUCE, "--student.learning-rate", "fast"], "--student.learning-rate fast: allowed are numbers"),
    ([*REPRODUCE, "--retrospection.ascent-share", "2"], "retrospection.ascent_share 2"),
    ([*REPRODUCE, "--student.temperature", "0"], "student.temperature"),
    ([*REPRODUCE, "--synthesis.latent", "0"], "synthesis.latent 0"),
    ([*REPRODUCE, "--vaccine.copies", "0"], "vaccine.copies 0"),
    ([*REPRODUCE, "--vaccine.reduction", "mean"], "--vaccine.reduction 'mean': allowed are class_mean, sum"),
    ([*REPRODUCE, "--vaccine.tail", "1"], "vaccine.tail"),
    ([*REPRODUCE, "--retrospection.ascent", "lbfgs"], "--retrospection.ascent 'lbfgs': allowed are adam, sgd"),
    ([*REPRODUCE, "--retrospection.portion", "1.5"], "retrospection.portion 1.5"),
    ([*REPRODUCE, "--retrospection.ascent-rate", "0"], "retrospection.ascent_rate"),
    ([*REPRODUCE, "--clean-kd.share", "0"], "clean_kd.share"),
    (["matrix", "digits"], "--out"),
    ([*MATRIX, "--methods", "zskt", "cmj"], "did you mean 'cmi'"),
    ([*MATRIX, "--methods", "cmi", "cmi"], "each value may stand there once"),
    ([*MATRIX, "--method", "cmi"], "a matrix has --methods cmi"),
    ([*MATRIX, "--triggers", "badnet_q"], "did you mean 'badnet_sq'"),
    ([*MATRIX, "--executor", "dask"], "--executor 'dask': allowed are local, ray, slurm"),
    ([*MATRIX, "--workers", "0"], "--workers 0"),
    ([*MATRIX, "--methods", "zskt", "cmi", "--synthesis.memory", "9"], "--synthesis.memory"),
    (["matrix", "digits", "--out", "FULL"], "use --resume to go on or --overwrite"),
    ([*TEACHER, "--seed", "zero"], "--seed"),
    ([*TEACHER, "--defense", "abd"], "--defense"),
    ([*TEACHER, "--trigger", "badnet"], "did you mean 'badnet_"),
    ([*TEACHER, "--triggers", "all", "blen"], "--triggers 'all'"),
    ([*TEACHER, "--triggers", "all", "--trigger", "blend"], "--trigger and --triggers: only one of them is allowed"),
    ([*TEACHER, "--seeds", "1", "--seed=2"], "--seed and --seeds: only one of them is allowed"),
    ([*REPRODUCE, "--triggers", "sig", "--trigger", "blend"], "--trigger and --triggers: only one of them is allowed"),
    ([*TEACHER, "--triggers", "blen"], "did you mean 'blend'"),
    ([*TEACHER, "--seeds", "1", "1"], "each value may stand there once"),
    (["teacher", "digits", "--out", "FULL", "--seeds", "1"], "use --resume to go on or --overwrite"),
    (["teachers"], "DIRECTORY"),
    (["teachers", "/nowhere"], "no such directory"),
    (["teachers", "FULL"], "no teacher here"),
    (["triggers", "digitz"], "did you mean 'digits'"),
    (["triggers", "digits", "--triggers", "blen"], "did you mean 'blend'"),
    (["triggers", "digits", "--examples", "0"], "--examples 0"),
    (["triggers", "digits", "--out", "FILE"], "is a file"),
    (["triggers", "digits", "--triggers", "blend", "--target", "10"], "target 10: allowed are 0 … 9"),
    ([*DIAGNOSE, "--epsilon", "0"], "--epsilon 0.0: allowed is (0, 1]"),
    ([*DIAGNOSE, "--shares", "1"], "--shares 1.0: allowed is [0, 1)"),
    ([*DIAGNOSE, "--counts", "64"], "0 among them"),
    ([*DIAGNOSE, "--ascent-steps", "0"], "--ascent-steps 0"),
    ([*DIAGNOSE, "--trigger", "blen"], "did you mean 'blend'"),
    ([*DIAGNOSE, "--trigger", "adaptive"], "acts through the training loss"),
    (["distill", "digits", "--out", "OUT"], "--teacher"),
    ([*DISTILL, "/nowhere"], "/nowhere: no such file or directory"),
    ([*DISTILL, "NETWORK", "--defense", "all"], "--defense 'all' (did you mean 'abl'?): allowed are none, sv"),
    ([*DISTILL, "NETWORK"], "is of data set 'svhn'"),
    ([*DISTILL, "OURS", "--trigger", "badnet_sq"], "--trigger badnet_sq: allowed is blend, which this teacher was poi"),
    ([*DISTILL, "OURS", "--teacher.target=3"], "--teacher.target 3: allowed is 0, which this teacher was poisoned wit"),
    (
        [*DISTILL, "OURS", "--teacher.architecture", "vgg-11"],
        "--teacher.architecture vgg-11: allowed is wrn-10-1, which",
    ),
    (
        [*DISTILL, "WEIGHTS", "--teacher.architecture", "vgg-11"],
        "--teacher.architecture vgg-11: allowed is wrn-10-1, w",
    ),
    (
        ["distill", "cifar10", "--out", "OUT", "--teacher", "RGB", "--method", "ood", "--defense", "sv", *WEIGHTLESS],
        "defense sv: with method ood this vaccine would change nothing; say --vaccine.student-weights paper",
    ),
    ([*REPRODUCE, "--vaccine.no-censor", "--vaccine.class-balance", "0"], "defense abd: with method zskt this vaccine"),
    ([*DISTILL, "/nowhere", "--arch", "wrn-10-1"], "/nowhere: no such file or directory"),
    ([*DISTILL, "NETWORK", "--num-classes", "10"], "num_classes can be said of a file alone"),
    ([*DISTILL, "FILE"], "no safetensors, PyTorch or Flax msgpack file"),
    ([*DISTILL, "BARE"], "nothing says its image_size and mean and std: say it as an option or in a YAML file"),
    ([*DISTILL, "BARE", *SAID[:2], "--mean", "0.5", "0.5", "--std", "1", "1"], "mean 0.5 0.5: allowed are 1 or 3"),
    ([*DISTILL, "BARE", *SAID[:4], "--std", "1", "1", "1"], "mean and std: need as many numbers each, got 1 and 3"),
    ([*DISTILL, "BARE", "--image-size", "800", *SAID[2:]], "image_size 800: allowed are one or two sides of 8–64"),
    ([*DISTILL, "BARE", *SAID, "--arch", "alexnet"], "unknown architecture 'alexnet'"),
    ([*DISTILL, "BARE", *SAID, "--architecture", "alexnet"], "unknown architecture 'alexnet'"),
    (["audit", "--out", "OUT", "--teacher", "BARE", *SAID, "--architecture=vgg-11"], "like those of wrn-10-1"),
    ([*DISTILL, "BARE", *SAID, "--num-classes", "4"], "wrn-10-1 with 4 classes"),
    ([*DISTILL, "WEIGHTS", "--mean", "0.5", "0.5", "0.5"], "mean and std: need as many numbers each"),
    ([*DISTILL, "WEIGHTS", "--defense", "clean_kd"], "learns from a data set, and none fits this teacher"),
    ([*DISTILL, "WEIGHTS", "--student.architecture", "resnet-18"], "student.attention above 0 needs stages of equal"),
    ([*DISTILL, "WEIGHTS", "--teacher.target", "10"], "teacher.target 10: allowed are the teacher's classes, 0 … 9"),
    ([*DISTILL, "WEIGHTS", "--vaccine.kernels", "30"], "vaccine.kernels 30: this teacher has"),
    ([*DISTILL, "VIT"], "student.attention above 0 needs stages of equal resolution"),
    ([*DISTILL, "VIT", "--student.attention", "0"], "method zskt reads the teacher's batch normalization"),
    ([*DISTILL, "VIT", "--student.attention", "0", "--method", "ood", "--defense", "clp"], "defense clp: needs a net"),
    ([*DISTILL, "VIT", "--student.attention", "0", "--method", "dfad"], "say --synthesis.batch-norm 0, or take ood"),
    ([*DISTILL, "VIT", "--student.attention", "0", "--method", "cmi"], "method cmi reads the teacher's batch normal"),
    (["audit", "--out", "OUT"], "one of --teacher FILE and --calibrate ZOO must be given"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--calibrate", "FULL"], "and not both"),
    (["audit", "--out", "OUT", "--calibrate", "FULL", "--student", "NETWORK"], "goes without --student"),
    (["audit", "--out", "OUT", "--calibrate", "FULL"], "no teacher here"),
    (["audit", "--out", "FILE", "--teacher", "NETWORK"], "is a file; allowed is a directory"),
    (["audit", "--out", "OUT", "--teacher", "BARE"], "nothing says its image_size"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--mean", "0.5"], "mean can be said of a file alone"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--calibration", "FILE"], "no calibration (Expecting value"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--calibration", "FULL"], "audit --calibrate ZOO --out DIR"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--batches", "0"], "batches 0: allowed are"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--inversion.steps", "0"], "inversion.steps 0"),
    (["evaluate"], "DIRECTORY"),
    (["evaluate", "/nowhere"], "no network here"),
    (["evaluate", "NETWORK"], "dataset 'svhn' (did you mean 'svhn_cropped'?)"),
    (
        ["evaluate", "STUDENT"],
        "network.json does not tell dataset, trigger, target; say --dataset DATASET --trigger",
    ),
    (["evaluate", "STUDENT", "--dataset", "digits", "--target", "1"], "does not tell trigger; say --trigger TRIGGER"),
    (["evaluate", "STUDENT", "--dataset", "digit", "--trigger", "sig", "--target", "1"], "did you mean 'digits'"),
    (
        ["evaluate", "STUDENT", "--dataset", "digits", "--trigger", "sig", "--target", "1"],
        "is for 8×8×1 images of 10 classes, data set digits has 16×16×1 images of 10 classes",
    ),
    (["evaluate", "NETWORK", "--jsn"], "--jsn"),
    (["evaluate", "NETWORK", "--trigger", "badnet_sqr"], "did you mean 'badnet_sq'"),
    (["evaluate", "NETWORK", "--target", "-1"], "--target -1: allowed are"),
    (["evaluate", "NAN"], "holds values that are not finite"),
    (["evaluate", "CUT"], "damaged, or not the wrn-10-1 that network.json says"),
    (["evaluate", "RESHAPED"], "damaged, or not the wrn-10-2 that network.json says"),
    ([*DISTILL, "CUT"], "damaged, or not the wrn-10-1 that network.json says"),
    (["datasets", "prepar"], "did you mean 'prepare'"),
    (["datasets", "--json"], "--json"),
    (["datasets", "prepare"], "NAME"),
    (["datasets", "prepare", "cifar11"], "did you mean 'cifar10'"),
    (["datasets", "prepare", "digits"], "nothing to prepare"),
    (["datasets", "prepare", "cifar10", "--from", "/nowhere"], "/nowhere: no such directory"),
    (["presets", "digitz"], "did you mean 'digits'"),
    (["presets", "digits", "--all"], "--all"),
    (["reproduce", "digits", "--out", "FILE"], "is a file"),
    (["reproduce", "digits", "--out", "FULL"], "use --resume to go on or --overwrite"),
    (["reproduce", "digits", "--out", "FULL", "--overwrite"], "no run of ours"),
    ([*REPRODUCE, "--seeds"], "error: --seeds and --defenses need at least one value"),
    ([*REPRODUCE, "--seeds", "-1"], "--seeds -1: allowed are whole numbers 0 … 4294967295"),
    ([*REPRODUCE, "--seeds", "99999999999999999999"], "--seeds 99999999999999999999: allowed are whole numbers 0"),
    ([*REPRODUCE, "--name", "../../x"], "--name ../../x: allowed is digits"),
    ([*REPRODUCE, "--teacher.crop", "-1"], "error: teacher.crop -1: allowed are whole numbers from 0"),
    ([*REPRODUCE, "--teacher.crop", "40"], "teacher.crop 40: allowed are 0 … 15 for images of side 16"),
    ([*REPRODUCE, "--teacher.learning-rate", "inf"], "teacher.learning_rate inf: allowed are finite numbers"),
    ([*REPRODUCE, "--student.attention", "inf"], "student.attention inf: allowed are finite numbers"),
    ([*REPRODUCE, "--student.weight-decay", "-1"], "student.weight_decay -1.0: allowed are numbers from 0"),
    ([*REPRODUCE, "--student.batch", "100000000"], "student.batch 100000000: allowed are whole numbers 2 … 65536"),
    ([*REPRODUCE, "--clean-kd.momentum", "-2"], "clean_kd.momentum -2.0: allowed is [0, 1)"),
    ([*REPRODUCE, "--inversion.start", "nan"], "inversion.start nan: allowed are finite numbers"),
    ([*REPRODUCE, "--rivals.fine-pruning.steps", "-5"], "rivals.fine_pruning.steps -5: allowed are whole numbers from"),
    ([*REPRODUCE, "--vaccine.kernels", "30"], "vaccine.kernels 30: this teacher has"),
    ([*REPRODUCE, "--rivals.dhbe.size", "40", "--defenses", "dhbe"], "rivals.dhbe.size 40: allowed is 1 … 16"),
    (
        [*REPRODUCE, "--student.cycles", "60", "--retrospection.start-fraction", "0.995"],
        "of 60 cycles none is left for",
    ),
    ([*REPRODUCE, "--devices", "99"], "devices 99: allowed are 1 … 8"),
    ([*REPRODUCE, "--devices", "-1"], "devices -1: allowed are 1 … 8"),
    ([*REPRODUCE, "--devices", "3"], "devices 3: student.batch 128 cannot be split"),
    (["reproduce", "digits", "--out", ""], "--out: its value is empty"),
    (["reproduce", "digits", "--out="], "--out: its value is empty"),
    (["reproduce", "digits", "--out", "FILE/sub"], "file/sub: cannot be made or read (Not a directory)"),
    (["reproduce", "digits", "--out", "/proc/nope"], "--out /proc/nope: cannot be made or read ("),
    (["reproduce", "digits", "--out", "LINK", "--overwrite"], "is a symbolic link"),
    (["matrix", "digits", "--out", "OUT", "--seeds"], "error: --seeds and --defenses need at least one value"),
    ([*MATRIX, "--seeds", "-1"], "--seeds -1: allowed are whole numbers"),
    ([*MATRIX, "--vaccine.kernels", "30"], "vaccine.kernels 30: this teacher has"),
    ([*TEACHER, "--seed", "-1"], "--seed -1: allowed are whole numbers"),
    ([*TEACHER, "--seeds", "-1"], "--seeds -1: allowed are whole numbers"),
    ([*TEACHER, "--teacher.crop", "16"], "teacher.crop 16: allowed are 0 … 15"),
    ([*DIAGNOSE, "--seed", "-1"], "--seed -1: allowed are whole numbers"),
    ([*DISTILL, "WEIGHTS", "--seed", "-1"], "--seed -1: allowed are whole numbers"),
    ([*DISTILL, "WEIGHTS", "--devices", "99"], "devices 99: allowed are 1 … 8"),
    (["audit", "--out", "OUT", "--teacher", "NETWORK", "--seed", "-1"], "seed -1: allowed are whole numbers"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    import safetensors.numpy

    from abd_jax.interop import export
    from abd_jax.interop.architectures import variables_to_torch
    from abd_jax.training import checkpoint

    top = tmp_path_factory.mktemp("places")
    checkpoint.save_network(
        top / "network", network(classes=10), "wrn-10-1", {"dataset": "svhn", "trigger": "blend", "target": 0}
    )
    unknown = dict.fromkeys(("dataset", "trigger", "target"))
    checkpoint.save_network(top / "student", network(classes=10), "wrn-10-1", {"role": "student", **unknown})
    facts = {"dataset": "digits", "trigger": "blend", "target": 0}
    checkpoint.save_network(top / "digits", network(classes=10, shape=(16, 16, 1)), "wrn-10-1", facts)
    (top / "rgb.safetensors").write_bytes(export.to_safetensors(network(classes=10, shape=(8, 8, 3)), "wrn-10-1"))
    (top / "file").write_text("")
    ours = network(classes=10)
    spoiled = ours.replace(variables=jax.tree.map(lambda leaf: leaf * np.nan, ours.variables))
    for name, saved in (("nan", spoiled), ("cut", ours), ("reshaped", ours)):
        checkpoint.save_network(top / name, saved, "wrn-10-1", {})
    for path in (top / "cut" / "variables").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    told = json.loads((top / "reshaped" / checkpoint.NETWORK_FILE).read_text())
    (top / "reshaped" / checkpoint.NETWORK_FILE).write_text(json.dumps({**told, "architecture": "wrn-10-2"}))
    (top / "ours.safetensors").write_bytes(export.to_safetensors(ours, "wrn-10-1"))
    (top / "bare.bin").write_bytes(safetensors.numpy.save(variables_to_torch(ours.module, ours.variables)))
    (top / "vit.safetensors").write_bytes(export.to_safetensors(network("vit-nano-4", classes=10), "vit-nano-4"))
    (top / "full").mkdir()
    (top / "full" / "thesis.tex").write_text("")
    (top / "ours").mkdir()
    (top / "ours" / "config.json").write_text("{}")
    (top / "link").symlink_to(top / "ours")
    return {
        "OUT": str(top / "out"),
        "FILE/sub": str(top / "file" / "sub"),
        "LINK": str(top / "link"),
        "NETWORK": str(top / "network"),
        "STUDENT": str(top / "student"),
        "WEIGHTS": str(top / "ours.safetensors"),
        "OURS": str(top / "digits"),
        "RGB": str(top / "rgb.safetensors"),
        "BARE": str(top / "bare.bin"),
        "NAN": str(top / "nan"),
        "CUT": str(top / "cut"),
        "RESHAPED": str(top / "reshaped"),
        "VIT": str(top / "vit.safetensors"),
        "FILE": str(top / "file"),
        "FULL": str(top / "full"),
    }


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT, ids=lambda value: " ".join(value) if value else None)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, places, capsys):
    assert console.run(COMMANDS, [places.get(word, word) for word in argv]) == console.BAD_INPUT
    said = capsys.readouterr().err
    if message is not None:
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert message in said
        assert "Error parsing" not in said and "---" not in said and "───" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*TEACHER, "--teacher.crop", "-1"], "error: teacher.crop -1: allowed are whole numbers from 0\n"),
        ([*TEACHER, "--seed", "zero"], "error: --seed zero: allowed are whole numbers\n"),
        (["teacher", "digits"], "error: --out: missing\n"),
        (["distill", "digits", "--techer", "x"], "error: unknown option --techer (did you mean --teacher?)\n"),
        (
            ["distill", "digits", "--file.arch", "x"],
            "error: --teacher and --out: missing; unknown option --file.arch\n",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_parsers_box_is_no_part_of_the_line(argv, message, encoding, monkeypatch, capsys):
    """Where the screen is not UTF-8 the box is of ASCII."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert console.run(COMMANDS, argv) == console.BAD_INPUT
    assert capsys.readouterr().err.endswith(message)


def test_overwrite_never_deletes_the_current_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for place in (".", str(tmp_path)):
        assert console.run(COMMANDS, ["teacher", "digits", "--out", place, "--overwrite"]) == console.BAD_INPUT
        assert "would delete the current directory" in capsys.readouterr().err
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "not enough memory"),
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory"),
        (RuntimeError("INTERNAL: a bug"), None),
    ],
)
def test_too_little_memory_is_one_line_and_a_bug_is_not(error, message, monkeypatch, capsys):
    from experiments.commands import presets as command

    def main(argv):
        raise error

    monkeypatch.setattr(command, "main", main)
    if message is None:
        with pytest.raises(RuntimeError, match="a bug"):
            console.run(COMMANDS, ["presets"])
        return
    assert console.run(COMMANDS, ["presets"]) == console.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("error", ["interrupted", "terminated"])
def test_what_was_interrupted_names_the_command_that_goes_on(error, monkeypatch, capsys):
    from abd_jax.training.stage import Interrupted
    from experiments.commands import evaluate, teacher

    def main(argv):
        raise KeyboardInterrupt if error == "interrupted" else Interrupted("saved")

    for command in (evaluate, teacher):
        monkeypatch.setattr(command, "main", main)
    code = console.INTERRUPTED if error == "interrupted" else console.TERMINATED
    said = "error: interrupted" if error == "interrupted" else "error: saved"
    for more in ([], ["--resume"], ["--overwrite"]):
        assert console.run(COMMANDS, ["teacher", "digits", *more, "--out", "my runs"]) == code
        again = "; go on with: python -m experiments teacher digits --out 'my runs' --resume\n"
        assert capsys.readouterr().err == said + again
    assert console.run(COMMANDS, ["evaluate", "DIR"]) == code
    assert capsys.readouterr().err == f"{said}\n"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    from abd_jax.training import runs

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    argv = ["reproduce", "digits", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert console.run(COMMANDS, argv) == console.BAD_INPUT
        begun = capsys.readouterr().err
    monkeypatch.setattr(runs, "train_teacher", full)
    assert console.run(COMMANDS, [*argv[:3], str(tmp_path / "other")]) == console.BAD_INPUT
    for said in (begun, capsys.readouterr().err):
        assert said.startswith("error: ") and said.count("\n") == 1 and "No space left on device" in said


def test_nothing_is_left_behind_by_bad_input(places, capsys):
    console.run(COMMANDS, ["reproduce", "digits", "--out", places["OUT"], "--teacher.target", "10"])
    console.run(COMMANDS, ["reproduce", "digits", "--out", places["OUT"], "--vaccine.kernels", "30"])
    console.run(COMMANDS, ["matrix", "digits", "--out", places["OUT"], "--vaccine.kernels", "30"])
    console.run(COMMANDS, [places.get(word, word) for word in [*DISTILL, "WEIGHTS", "--vaccine.kernels", "30"]])
    assert not Path(places["OUT"]).exists()
