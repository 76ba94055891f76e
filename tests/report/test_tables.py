"""Means and deviations over seeds, the terminal's table, and what the headline dares to say."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from abd_jax.report import results_table
from abd_jax.report.headline import headline
from abd_jax.report.reading import Row
from abd_jax.report.tables import Statistic, summarize


def row(role="student", defense="none", trigger="badnet_sq", seed=0, acc=0.9, asr=0.5, ra=0.4) -> Row:
    return Row("digits", "digits", "zskt", trigger, seed, role, defense, acc, asr, ra, 10.0)


def three(vanilla=(0.92, 0.97), abd=(0.912, 0.02), teacher=(0.992, 0.997)) -> list[Row]:
    return [
        row("teacher", acc=teacher[0], asr=teacher[1]),
        row(acc=vanilla[0], asr=vanilla[1]),
        row(defense="abd", acc=abd[0], asr=abd[1]),
    ]


def text_of(table, width=120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def test_statistics_equal_numpy():
    values = np.random.default_rng(0).random(7)
    statistic = Statistic.of(values)
    assert statistic.mean == pytest.approx(values.mean())
    assert statistic.std == pytest.approx(values.std(ddof=1))
    assert statistic.percent() == f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"


def test_one_value_has_no_deviation():
    assert Statistic.of([0.5]) == Statistic(0.5, None)
    assert Statistic.of([0.5]).percent() == "50.0"


def test_summaries_keep_triggers_and_networks_apart():
    rows = [row(seed=seed, trigger=trigger) for trigger in ("a", "b") for seed in (1, 0)] + [
        row("teacher", trigger="a")
    ]
    summaries = summarize(rows)
    assert [(s.trigger, s.role, s.seeds) for s in summaries] == [
        ("a", "student", (0, 1)),
        ("b", "student", (0, 1)),
        ("a", "teacher", (0,)),
    ]


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


def test_headline_for_good_numbers():
    assert plain(headline(three(), "0")) == (
        "The teacher answers class 0 on 99.7 % of triggered images (ACC 99.2 %). A student distilled from it without "
        "data inherited this (ASR 97.0 %). With ABD: 2.0 %, ACC 91.2 % against 92.0 %."
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (three(abd=(0.90, 0.98)), "ABD raised it: 98.0 %, ACC 90.0 % against 92.0 %."),
        (three(abd=(0.90, 0.97)), "ABD did not lower it: 97.0 %"),
        (three(abd=(0.90, 0.60)), "With ABD it is still 60.0 %"),
        (three(abd=(0.70, 0.02)), "With ABD: 2.0 %, ACC 70.0 % against 92.0 %, a cost of 22.0 points."),
        (three(vanilla=(0.92, 0.3)), "inherited part of this (ASR 30.0 %)"),
        (three(vanilla=(0.92, 0.05)), "hardly inherited this (ASR 5.0 %)"),
        (three(teacher=(0.99, 0.3)), "on only 30.0 % of triggered images"),
        (three(teacher=(0.99, 0.02)), "there is hardly a backdoor to inherit"),
    ],
)
def test_headline_for_bad_numbers(rows, says):
    assert says in plain(headline(rows, "0"))


def test_headline_of_unfinished_runs():
    teacher, vanilla, abd = three()
    assert headline([], "0").startswith("No network has finished")
    assert headline([teacher], "0").endswith("No student has finished yet.")
    assert headline([teacher, vanilla], "0").endswith("No defended student has finished yet.")
    assert "nothing to compare a defense with" in headline([teacher, abd], "0")
    assert "inherited a backdoor" in headline([vanilla, abd], None)


def test_headline_compares_only_what_both_have():
    rows = [*three(), row(seed=1, acc=0.1, asr=0.1)]
    assert headline(rows, "0") == headline(three(), "0")
    elsewhere = dataclasses.replace(three()[2], seed=5)
    text = headline([*three()[:2], elsewhere], "0")
    assert text.endswith("No defended student has finished on the same trigger and seed yet.")


def test_headline_names_what_it_is_a_mean_of():
    rows = [
        dataclasses.replace(one, seed=seed, trigger=trigger, asr=min(1, one.asr + 0.001 * seed))
        for one in three()
        for seed in (0, 2)
        for trigger in ("a", "b")
    ]
    text = plain(headline(rows, "0"))
    assert text.startswith("The teachers answer class 0 on 99.8 %")
    assert "Students distilled from them without data inherited this (ASR 97.1 %)" in text
    assert text.endswith("(Means over 2 triggers and 2 seeds.)")


def test_headline_takes_another_defense_where_there_is_no_abd():
    rows = [*three()[:2], row(defense="sv", asr=0.1), row(defense="clean_kd", asr=0.0)]
    assert "With SV: 10.0 %" in plain(headline(rows, "0"))
