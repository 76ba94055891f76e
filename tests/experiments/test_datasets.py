"""`datasets`: from files on disk to a data set that loads, and every way in which it does not."""

import json
import re

import pytest

from abd_jax import data
from abd_jax.data import prepared
from experiments import console
from experiments.__main__ import COMMANDS
from tests.data import originals

COLOR = originals.arrays(50, 10, (32, 32, 3), 10)
GREY = originals.arrays(50, 10, (28, 28, 1), 10)
WRITE = {
    "mnist": lambda place: originals.write_idx(place, GREY),
    "fashion_mnist": lambda place: originals.write_idx(place, GREY),
    "cifar10": lambda place: originals.write_cifar_python(place, 10, COLOR),
    "cifar100": lambda place: originals.write_cifar_python(place, 100, COLOR),
    "svhn_cropped": lambda place: originals.write_svhn(place, COLOR),
    "gtsrb": lambda place: originals.write_gtsrb(place, COLOR),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv(prepared.VARIABLE, str(place))
    for name in WRITE:
        monkeypatch.setitem(data.CATALOG, name, originals.tiny(name, 50, 10))
    return place


def rows(capsys):
    """Data set → its cells, as listed."""
    capsys.readouterr()
    assert console.run(COMMANDS, ["datasets"]) == 0
    lines = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in capsys.readouterr().out.splitlines() if "│" in line]
    return {cells[0]: cells[1:] for cells in lines}


@pytest.mark.parametrize("name", WRITE)
def test_from_files_on_disk(name, cache, tmp_path, capsys):
    (tmp_path / "files").mkdir()
    WRITE[name](tmp_path / "files")
    assert rows(capsys)[name][-1] == "no"
    assert console.run(COMMANDS, ["datasets", "prepare", name, "--from", str(tmp_path / "files")]) == 0
    said = capsys.readouterr().out
    assert said == f"{name}: 50 training and 10 test images in {cache / name}\n"
    listed = rows(capsys)
    dataset = data.load(name)
    size = "×".join(map(str, dataset.image_shape))
    assert listed[name] == ["50", "10", size, str(dataset.num_classes), "yes"]
    assert listed["digits"] == ["1437", "360", "16×16×1", "10", "always"]
    assert listed.keys() == data.CATALOG.keys()


def test_every_data_set_can_be_prepared():
    assert WRITE.keys() | {"digits"} == data.CATALOG.keys() == data.LOADERS.keys()


def refused(capsys, *argv):
    assert console.run(COMMANDS, list(argv)) == console.BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


def test_a_run_on_a_set_that_is_missing_or_damaged_is_one_line(cache, tmp_path, capsys):
    run = ["reproduce", "fashion_mnist", "--out", str(tmp_path / "out")]
    assert "run: python -m experiments datasets prepare fashion_mnist" in refused(capsys, *run)
    originals.write_idx(tmp_path / "files", GREY)
    assert console.run(COMMANDS, ["datasets", "prepare", "fashion_mnist", "--from", str(tmp_path / "files")]) == 0
    capsys.readouterr()
    (cache / "fashion_mnist" / "train_images.npy").write_bytes(b"")
    assert "train_images.npy: damaged" in refused(capsys, *run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WRITE)
def test_damaged_originals_are_one_line_and_leave_nothing(name, cache, tmp_path, capsys):
    (tmp_path / "files").mkdir()
    WRITE[name](tmp_path / "files")
    for path in (tmp_path / "files").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert "damaged" in refused(capsys, "datasets", "prepare", name, "--from", str(tmp_path / "files"))
    assert list(cache.iterdir()) == []


@pytest.mark.optax
def test_a_teacher_is_trained_on_what_was_prepared(tmp_path, capsys):
    """Arrays that are mapped and read-only serve training, poisoning and evaluation."""
    originals.write_idx(tmp_path / "files", GREY)
    assert console.run(COMMANDS, ["datasets", "prepare", "fashion_mnist", "--from", str(tmp_path / "files")]) == 0
    small = ["--teacher.architecture", "wrn-10-1", "--teacher.epochs", "1", "--teacher.batch", "25"]
    assert console.run(COMMANDS, ["teacher", "fashion_mnist", "--out", str(tmp_path / "out"), *small]) == 0
    row = json.loads((tmp_path / "out" / "result.json").read_text())
    assert row["dataset"] == "fashion_mnist" and 0 <= row["acc"] <= 1
