"""What the headline dares to say."""

import dataclasses

import pytest

from abd_jax.report.headline import headline
from abd_jax.report.rows import Row
from tests.report.made_up import row


def three(vanilla=(0.92, 0.97), abd=(0.912, 0.02), teacher=(0.992, 0.997)) -> list[Row]:
    return [
        row("teacher", acc=teacher[0], asr=teacher[1]),
        row(acc=vanilla[0], asr=vanilla[1]),
        row(defense="abd", acc=abd[0], asr=abd[1]),
    ]


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


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
