"""What commands that take a preset say before they work."""

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
def test_options_that_are_not_read_are_named(monkeypatch, defense, options, said):
    lines = []
    monkeypatch.setattr(_common.stderr, "print", lambda line, **_: lines.append(line))
    _common.warn_of_unread(options.split(), presets.presets()["digits"], defense)
    assert lines == [f"note: --defense {defense} does not read {option}" for option in said]


def test_a_matrixs_workers_take_the_processes_settings(monkeypatch):
    told = []
    monkeypatch.setattr(matrix.process, "tune", lambda: told.append("tuned"))

    def execute(work, items):
        return [(item, work(item)) for item in items]

    assert matrix._tuned(execute, lambda item: (item, len(told)), [3, 4]) == [(3, (3, 1)), (4, (4, 2))]
