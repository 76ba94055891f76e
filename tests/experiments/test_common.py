"""What commands that take a preset say before they work."""

import dataclasses

import pytest

from experiments import presets
from experiments.commands import _common, matrix


@pytest.mark.parametrize(
    ("defense", "options", "said"),
    [
        ("sv", "--retrospection.weight 3 --vaccine.alpha 1 --inversion.steps 2", ["--retrospection.weight"]),
        ("none", "--rivals.i_bau.rounds=3 --inversion.steps 2", ["--inversion.steps", "--rivals.i_bau.rounds"]),
        ("i_bau", "--rivals.i-bau.rounds 3", []),
        ("abd", "--vaccine.alpha 1 --retrospection.weight 3 --inversion.steps 2 --student.cycles 3", []),
    ],
)
def test_options_that_a_defense_does_not_read_are_named(monkeypatch, defense, options, said):
    lines = []
    monkeypatch.setattr(_common.stderr, "print", lambda line, **_: lines.append(line))
    _common.warn_of_unread(options.split(), presets.presets()["digits"], defense)
    assert lines == [f"note: --defense {defense} does not read {option}" for option in said]


@pytest.mark.parametrize(
    ("defense", "options", "said"),
    [
        ("abd", "--teacher x --teacher.epochs 3 --teacher.poison_rate=0.2", "--teacher.epochs, --teacher.poison_rate"),
        ("abd", "--teacher x --teacher.architecture wrn-10-1 --teacher.target 3", None),
        ("clean_kd", "--teacher x --teacher.crop 2", None),
        ("none", "--teacher x --teacher.crop 2", "--teacher.crop"),
    ],
)
def test_options_that_train_a_teacher_are_named_where_there_is_one(monkeypatch, defense, options, said):
    lines = []
    monkeypatch.setattr(_common.stderr, "print", lambda line, **_: lines.append(line))
    _common.warn_of_unread(options.split(), presets.presets()["digits"], defense)
    assert lines == ([f"note: a teacher that is trained already does not read {said}"] if said else [])


def test_a_matrixs_workers_take_the_processes_settings(monkeypatch):
    told = []
    monkeypatch.setattr(matrix.process, "tune", lambda: told.append("tuned"))

    def execute(work, items):
        return [(item, work(item)) for item in items]

    assert matrix._tuned(execute, lambda item: (item, len(told)), [3, 4]) == [(3, (3, 1)), (4, (4, 2))]


@pytest.mark.parametrize(
    ("preset", "method", "taken", "said"),
    [
        ("digits", "cmi", "digits-cmi", ["note: --method cmi: with the settings of preset digits-cmi"]),
        ("digits-paper", "cmi", None, ["note: --method cmi: with the settings of its publication"]),
        ("digits", None, "digits", []),
        ("digits-cmi", "cmi", "digits-cmi", []),
        (
            "digits",
            "zskt",
            "digits",
            ["note: --method zskt: as preset digits has it; digits-zskt has other settin"],
        ),
    ],
)
def test_a_method_has_the_settings_that_a_matrix_gives_it(monkeypatch, preset, method, taken, said):
    @dataclasses.dataclass(frozen=True)
    class Options:
        preset: _common.PresetFields

    lines, known = [], presets.presets()
    monkeypatch.setattr(_common.stdout, "print", lambda line, **_: lines.append(line))
    argv = [preset, *(["--method", method] if method else [])]
    found = _common.with_preset(Options, argv, prog="x", description="y").preset
    assert found == (known[taken] if taken else known[preset].with_method(method))
    assert len(lines) == len(said) and all(line.startswith(start) for line, start in zip(lines, said, strict=True))
    if method and method != known[preset].method:
        assert found == _common.of_method(known[preset], method)
