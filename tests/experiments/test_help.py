"""Every command explains itself, and every option has its help."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from experiments import console, presets
from experiments.__main__ import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) if command != "presets" else _nothing() as stop:
        console.run(COMMANDS, [command, "--help"])
    assert stop is None or stop.value.code in (0, None)
    said = capsys.readouterr().out
    assert "usage" in said and command in said


def helped(capsys, *argv):
    with pytest.raises(SystemExit):
        console.run(COMMANDS, [*argv, "--help"])
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().out).split())


def test_help_says_whose_defaults_it_shows(capsys):
    said = helped(capsys, "distill")
    assert "usage: python -m experiments distill PRESET" in said
    assert "The defaults below are those of the preset cifar10; `distill PRESET --help` has another's." in said
    assert "The defaults below" not in helped(capsys, "distill", "digits")


def test_help_lists_every_attack_and_method(capsys):
    from abd_jax import synthesis
    from abd_jax.attacks.attack import ATTACKS

    said = helped(capsys, "distill", "digits")
    assert f": {', '.join(ATTACKS)} (default: badnet_sq)" in said
    assert f": {', '.join(synthesis.names())} (default: zskt)" in said


@pytest.mark.parametrize("method", ["zskt", "cmi", "ood", "deep_inversion", "nayer"])
def test_every_option_of_a_preset_has_its_help(method):
    from tyro import _docstrings

    def without(settings, prefix=""):
        for field in dataclasses.fields(settings):
            value, name = getattr(settings, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                yield from without(value, f"{name}.")
            elif not (field.metadata.get("help") or _docstrings.get_field_docstring(type(settings), field.name, ())):
                yield name

    assert list(without(presets.presets()["digits"].with_method(method))) == []


class _nothing:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


def test_the_entry_point_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "experiments", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("argv", [["teacher", "--help"], ["presets"]], ids=" ".join)
def test_where_nobody_reads_on_it_ends_silently(argv):
    """As `| head` ends it: tyro's text waits in Python's buffer, rich writes a table at once."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "experiments", *argv], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (console.BROKEN_PIPE, "")
