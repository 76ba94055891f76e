"""The terminal's table."""

import dataclasses
import io

import pytest
from rich.console import Console

from abd_jax.report import results_table
from tests.report.made_up import row


def text_of(table, width=120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def test_the_terminal_table_names_rates_and_seeds():
    rows = [dataclasses.asdict(row(defense="abd", seed=seed, asr=asr)) for seed, asr in enumerate((0.01, 0.02, 0.06))]
    text = text_of(results_table([dataclasses.asdict(row("teacher", acc=0.992)), *rows]))
    assert "teacher" in text and "99.2" in text
    assert "student, ABD" in text and "3.0 ± 2.6" in text
    assert "sample standard deviation over seeds" in text
    assert [line.split()[-2] for line in text.splitlines() if "ABD" in line] == ["3"]


def test_the_terminal_table_has_columns_for_what_differs():
    rows = [row(), dataclasses.replace(row(), dataset="fashion")]
    text = text_of(results_table(rows))
    assert "dataset" in text and "fashion" in text
    assert "dataset" not in text_of(results_table(rows[:1]))


def test_the_terminal_table_takes_no_name_for_markup():
    assert "[red]x[/red]" in text_of(results_table([row(trigger="[red]x[/red]")]))


def test_the_terminal_table_names_a_bad_row():
    with pytest.raises(ValueError, match="row 1: the field 'preset' is missing"):
        results_table([row(), {}])


def test_an_empty_table_is_a_table():
    assert "ACC" in text_of(results_table([]))
