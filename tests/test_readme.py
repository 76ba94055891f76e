"""README's commands and whatever it names exist; CI runs linter and tests; no placeholder is left in any text."""

import re
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS
from experiments.presets import presets

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


@pytest.mark.parametrize("path", [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_no_placeholder_is_left(path):
    """A word of capitals, alone on its line, stands for what somebody meant to fill in."""
    assert not re.findall(r"^\W*[A-Z]{4,}\W*$", path.read_text(), re.MULTILINE)
