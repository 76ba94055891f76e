"""Means and deviations over seeds."""

import dataclasses

import numpy as np
import pytest

from abd_jax.report.summary import Statistic, summarize, varying
from tests.report.made_up import row


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


@pytest.mark.parametrize(
    ("pairs", "columns"),
    [
        ([("p", "zskt"), ("p", "cmi")], ["method"]),
        ([("p-zskt", "zskt"), ("p-cmi", "cmi")], ["method"]),
        ([("p", "zskt"), ("q", "zskt")], ["preset"]),
        ([("p", "zskt"), ("q", "zskt"), ("q", "cmi")], ["preset", "method"]),
    ],
)
def test_a_column_is_for_what_differs_and_is_not_told_by_the_method(pairs, columns):
    rows = [dataclasses.replace(row(), preset=preset, method=method) for preset, method in pairs]
    assert varying(rows) == columns
