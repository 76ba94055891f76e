"""README's commands and whatever it names exist; CI runs linter and tests; no placeholder is left in any text."""

import contextlib
import re
from pathlib import Path

import jax
import pytest

from abd_jax import synthesis
from experiments import console
from experiments.__main__ import COMMANDS
from experiments.commands._common import with_preset
from experiments.commands.reproduce import Reproduce
from experiments.presets import presets
from tests.synthesis import small

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()


def test_readmes_two_commands_are_make_targets_and_ci_runs_linter_and_tests():
    makefile = (TOP / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    assert {"make lint", "make test"} <= set((TOP / ".ci" / "run").read_text().splitlines())
    assert "-m experiments reproduce digits --out runs/demo" in makefile


def test_what_readme_names_exists():
    for command in re.findall(r"python -m experiments (\w+)", README):
        assert command in COMMANDS
    for room in re.findall(r"^(abd_jax/\w+|experiments|tests) ", README, re.MULTILINE):
        assert (TOP / room).is_dir(), room
    for name in re.findall(r"`(digits[\w-]*)`", README):
        assert name in presets(), name
    for path in re.findall(r"docs/[\w/.]+\w", README):
        assert (TOP / path).exists(), path


def test_readmes_commands_and_options_are_taken(capsys):
    """Each command's options stand in its help; those that are the example act on the preset."""
    for command, words in re.findall(r"python -m experiments (\w+)([^`\n]*)", README):
        with contextlib.suppress(SystemExit):
            console.run(COMMANDS, [command, "--help"])
        shown = capsys.readouterr().out
        for option in re.findall(r"--[\w.-]+", words):
            assert option in shown or "prepare" in words, (command, option)
    (example,) = re.findall(r"is an option: `([^`]+)`", README)
    found = with_preset(Reproduce, ["digits", "--out", "x", *example.split()], prog="", description="").preset
    known = presets()["digits"]
    assert found.vaccine.class_balance != known.vaccine.class_balance and found.vaccine.alpha == 0
    assert found.student != known.student and found.retrospection.portion != known.retrospection.portion


@pytest.mark.optax
def test_readmes_new_method_is_a_method_in_30_lines(monkeypatch):
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "abd.register" in block)
    assert len([line for line in block.splitlines() if line.strip()]) <= 30
    monkeypatch.setattr(synthesis, "METHODS", dict(synthesis.METHODS))
    exec(compile(block, "README.md", "exec"), {})
    config = synthesis.lookup("haze").config()
    own = synthesis.create(config, small.task())
    assert isinstance(own, synthesis.Synthesizer) and "haze" in synthesis.METHODS
    before = own.init(jax.random.key(0))
    after, history = small.run(own, before, 20)
    assert after.shape == small.SHAPE
    assert history[-1]["haze/loss"] < history[0]["haze/loss"]
    assert own.sample(jax.random.key(1), after, 5).shape == (5, *small.SHAPE)


@pytest.mark.parametrize("path", [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_no_placeholder_is_left(path):
    """A word of capitals, alone on its line, stands for what somebody meant to fill in."""
    assert not re.findall(r"^\W*[A-Z]{4,}\W*$", path.read_text(), re.MULTILINE)
