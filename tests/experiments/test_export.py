"""`export` on a run's directory: the file, its card, and what is refused."""

import json

import numpy as np
import pytest

from abd_jax.interop import read_teacher
from abd_jax.training import checkpoint
from experiments import console
from experiments.__main__ import COMMANDS
from tests.networks import network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    top = tmp_path_factory.mktemp("run")
    for name in ("network", "best"):
        checkpoint.save_network(top / name, network(), "wrn-10-1", {"role": "student", "defense": "abd", "seed": 3})
    (top / "config.json").write_text(
        json.dumps({"preset": {"method": "zskt", "student": {"cycles": 600}}, "teacher": {"digest": "9fed"}})
    )
    (top / "result.json").write_text(json.dumps({"acc": 0.9, "asr": 0.02, "ra": 0.8, "method": "zskt"}))
    return top


def export(*words):
    return console.run(COMMANDS, ["export", *map(str, words)])


@pytest.mark.parametrize("place", ["", "network"])
def test_a_run_is_exported_with_its_card(run, place, tmp_path, capsys):
    out = tmp_path / "student.safetensors"
    assert export(run / place, "--format", "safetensors", "--out", out) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    ours = network()
    back = read_teacher(out, input_shape=ours.input_shape, mean=ours.mean, std=ours.std)
    np.testing.assert_array_equal(back.params["fc"]["kernel"], ours.params["fc"]["kernel"])
    card = (tmp_path / "student.safetensors.md").read_text().splitlines()
    for row in ("| ACC | 90.00 % |", "| method | zskt |", "| teacher.digest | 9fed |", "| student.cycles | 600 |"):
        assert row in card


def test_the_best_network_has_not_the_last_ones_rates(run, tmp_path):
    assert export(run / "best", "--format", "flax", "--out", tmp_path / "best.msgpack") == 0
    card = (tmp_path / "best.msgpack.md").read_text()
    assert "Nothing is known." in card and "| method | zskt |" in card.splitlines()


def test_what_is_not_known_of_a_student_of_a_strangers_file_is_said(tmp_path):
    facts = {"role": "student", "dataset": None, "trigger": None, "target": None}
    digest = checkpoint.save_network(tmp_path / "run" / "network", network(), "wrn-10-1", facts)
    (tmp_path / "run" / "result.json").write_text(json.dumps({"acc": None, "asr": None, "ra": None, "method": "zskt"}))
    side = {"digest": digest, "signs": {"tail": 0.25}, "verdicts": {"tail": "speaks for a backdoor"}}
    (tmp_path / "audit.json").write_text(json.dumps({"teacher": {"digest": "other"}, "student": side}))
    out = tmp_path / "x.safetensors"
    assert export(tmp_path / "run", "--format", "safetensors", "--out", out, "--audit", tmp_path) == 0
    card = (tmp_path / "x.safetensors.md").read_text()
    assert "Nothing is known." in card and "| trigger | not known |" in card
    assert "## Audit" in card and "| tail | 0.25, speaks for a backdoor; on the zoo: not known |" in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN", "--format", "flax", "--out", "OUT", "--audit", "RUN"], "no audit of this network"),
        (["RUN", "--format", "pickle", "--out", "OUT"], "'pickle': allowed are safetensors, stablehlo, onnx, flax"),
        (["RUN", "--format", "flax"], "--out"),
        (["/nowhere", "--format", "flax", "--out", "OUT"], "no network here"),
        (["RUN", "--format", "flax", "--out", "FULL"], "exists already; use --overwrite"),
        (["RUN", "--format", "flax", "--out", "/nowhere/student"], "there is no directory /nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, words, message, tmp_path, capsys):
    (tmp_path / "full").write_text("thesis")
    places = {"RUN": run, "OUT": tmp_path / "out", "FULL": tmp_path / "full"}
    assert export(*(places.get(word, word) for word in words)) == console.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (tmp_path / "full").read_text() == "thesis"


def test_a_file_is_replaced_when_asked(run, tmp_path):
    out = tmp_path / "student"
    out.write_text("old")
    assert export(run, "--format", "flax", "--out", out, "--overwrite") == 0
    assert out.read_bytes() != b"old"
