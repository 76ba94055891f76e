"""A zoo of teachers: trained, resumed and tabulated."""

import json
import re

from experiments import console
from experiments.__main__ import COMMANDS
from tests.networks import network


def test_a_folder_of_teachers_is_tabulated(tmp_path, capsys):
    from abd_jax.training import checkpoint

    facts = {"role": "teacher", "dataset": "digits", "trigger": "blend", "target": 3, "seed": 1, "poisoned": [4, 7]}
    rates = {"acc": 0.9, "asr": 0.995, "ra": 0.25}
    digest = checkpoint.save_network(tmp_path / "a" / "network", network(classes=10), "wrn-10-1", facts | rates)
    checkpoint.save_network(tmp_path / "b" / "network", network(classes=10), "wrn-10-1", facts)  # of an older version
    checkpoint.save_network(tmp_path / "c" / "network", network(classes=10), "wrn-10-1", facts | {"role": "student"})
    assert console.run(COMMANDS, ["teachers", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "path": "a", "dataset": "digits", "architecture": "wrn-10-1", "trigger": "blend", "target": 3, "seed": 1,
        "acc": 0.9, "asr": 0.995, "ra": 0.25, "classes": 10, "poisoned": 2, "digest": digest,
    }  # fmt: skip
    assert second["path"] == "b" and second["acc"] is None
    assert console.run(COMMANDS, ["teachers", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "99.50" in shown and digest[:7] in shown and "blend → 3" in shown and "digits, wrn-10-1" in shown
    long, last = tmp_path / "teachers" / "a-teacher-of-long-name-seed10" / "network", facts | {"trigger": "input_aware"}
    checkpoint.save_network(long, network("vgg-11", classes=10), "vgg-11", last | dict.fromkeys(rates, 1.0))
    assert console.run(COMMANDS, ["teachers", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()) and shown.count("ACC %") == 2
    (line,) = (line for line in shown.splitlines() if "100.00" in line)
    assert re.search(r"input_aware → 3 +2 +100.00 +100.00 +100.00 +[0-9a-f]{7} *$", line)
    (tmp_path / "a" / "network" / "network.json").write_text("{")
    assert console.run(COMMANDS, ["teachers", str(tmp_path)]) == console.BAD_INPUT
    assert "damaged" in capsys.readouterr().err


def test_a_zoo_is_trained_and_resumed(tmp_path, capsys, monkeypatch):
    from abd_jax.training import runs

    trained = []

    def train(directory, preset, dataset, trigger, seed, observer):
        if directory.result is None:
            assert preset.trigger == trigger
            trained.append((trigger, seed))
            directory.finish({"acc": 0.9, "asr": 0.8, "ra": 0.1})
        return directory.result

    monkeypatch.setattr(runs, "train_teacher", train)
    zoo = ["teacher", "digits", "--out", str(tmp_path / "zoo"), "--seeds", "0", "1"]
    assert console.run(COMMANDS, [*zoo, "--triggers", "blend", "sig"]) == 0
    assert trained == [("blend", 0), ("blend", 1), ("sig", 0), ("sig", 1)]
    assert console.run(COMMANDS, [*zoo, "--triggers", "all"]) == console.BAD_INPUT
    assert console.run(COMMANDS, [*zoo, "--triggers", "all", "--resume"]) == 0
    from abd_jax.attacks.attack import ATTACKS

    assert len(trained) == len(set(trained)) == 2 * len(ATTACKS)
    assert "80.00 %" in capsys.readouterr().out
