"""Plots: labels that do not collide, words for who cannot see them, colors of the page, nothing foreign."""

import itertools
import re

import numpy as np
import pytest

from abd_jax.report import plots
from abd_jax.report.artifacts import Curve, Inversion, Vaccine
from abd_jax.report.reading import Student

STEPS = (10, 20, 30)


def run(defense="none", seed=0, asr=(0.2, 0.5, 0.97), steps=STEPS, finished=True) -> Student:
    curve = Curve(steps, tuple(map(float, asr)), tuple(map(float, asr)), steps[-1])
    return Student("badnet_sq", seed, defense, None, None, finished, curve, None, None, None)


def vaccine(**changes) -> Vaccine:
    rng = np.random.default_rng(0)
    values = {
        "log_kl": rng.normal(0, 1, (2, 400)),
        "threshold": -2.9,
        "tail": 0.03,
        "trials": 2,
        "enabled": True,
        "tail_bar": 0.02,
        "synthetic": rng.normal(0, 1, 50),
        "clean": rng.normal(0, 1, 50),
        "triggered": rng.normal(-3, 1, 50),
    }
    return Vaccine(**(values | changes))


def inversion(sizes=(40.0, 6.5, 50.0), flips=(0.9, 1.0, 0.25), suspect=1) -> Inversion:
    blank = np.zeros((len(sizes), 4, 4, 1))
    return Inversion(blank, blank, np.asarray(sizes), np.asarray(flips), np.zeros(len(sizes)), suspect)


@pytest.mark.parametrize("positions", [[99.0, 92.0, 91.5, 91.0, 0.4, 0.2], [0.0] * 4, [100.0] * 5, [50.0], []])
def test_labels_keep_their_distance_and_their_order(positions):
    moved = plots.spread(positions, 8.0, 0.0, 100.0)
    assert all(b - a >= 8 - 1e-9 for a, b in itertools.pairwise(sorted(moved)))
    assert all(-1e-9 <= value <= 100 for value in moved)
    order = np.argsort(positions, kind="stable")
    assert (np.diff(np.asarray(moved)[order]) > 0).all()


def test_labels_with_room_stay():
    assert plots.spread([10.0, 90.0, 50.0], 8.0, 0.0, 100.0) == [10, 90, 50]


def test_curves_end_with_their_name_and_value():
    svg = plots.curves("asr", [run(), run("abd", asr=(0.1, 0.0, 0.02))], 0.997, "badnet_sq")
    assert ">vanilla 97.0</text>" in svg and ">ABD 2.0</text>" in svg and ">teacher 99.7</text>" in svg
    label = re.search(r'aria-label="([^"]*)"', svg)[1]
    assert "vanilla at 97.0 %" in label and "ABD at 2.0 %" in label and "99.7 %" in label


def test_several_seeds_are_told_as_a_mean():
    svg = plots.curves("asr", [run(), run(seed=1, asr=(0.1, 0.4, 0.93))], None, "x")
    assert ">vanilla 95.0</text>" in svg
    assert "vanilla at 95.0 % (mean of 2 seeds)" in svg


def test_seeds_without_a_step_in_common_are_drawn():
    svg = plots.curves("asr", [run(), run(seed=1, steps=(11, 21, 31))], None, "x")
    assert "mean of 2 seeds" in svg


def test_runs_of_different_length_share_an_axis_of_percent():
    long = run("clean_kd", steps=(100, 200, 900))
    assert "percent of the run" in plots.curves("acc", [run(), long], None, "x")
    assert "training step" in plots.curves("acc", [run(), run("abd", steps=(5, 6, 7), finished=False)], None, "x")


def test_colors_are_the_page_s():
    svg = plots.curves("acc", [run(), run("abd"), run("somebody’s")], 0.9, "x")
    assert {"var(--none)", "var(--abd)", "var(--extra)", "var(--muted)"} <= set(re.findall(r"var\([\w-]+\)", svg))
    assert not re.search(r"#[0-9a-f]{6}\b", svg)


def test_nothing_foreign_is_in_the_svg():
    svg = plots.histogram(vaccine(), "x")
    assert svg.startswith("<svg ") and svg.rstrip().endswith("</svg>")
    assert "<style" not in svg and "<metadata" not in svg and "font-family" not in svg
    assert not re.search(r'href="(?!#)', svg)
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(set(ids)) == len(ids)


def test_names_are_escaped_and_never_mathematics():
    svg = plots.curves("acc", [run("<b>$\\frac{1}$&\"'")], None, "x")
    assert "<b>" not in svg and "&lt;b&gt;$\\frac{1}$&amp;" in svg


def test_the_same_plot_twice_is_the_same_text_and_others_have_other_ids():
    one, again, other = (plots.histogram(vaccine(), where) for where in ("a", "a", "b"))
    assert one == again
    assert not set(re.findall(r' id="([^"]*)"', one)) & set(re.findall(r' id="([^"]*)"', other))


def test_a_histogram_parts_at_the_threshold():
    edges = plots._edges([np.asarray([-5.0, 0.0, 3.0])], -2.9, 30)
    assert np.abs(edges + 2.9).min() < 1e-12
    assert edges[0] <= -5 and edges[-1] >= 3
    svg = plots.histogram(vaccine(), "x")
    assert "threshold −2.90" in svg and "tail 3.0 %" in svg


@pytest.mark.parametrize("values", [np.zeros((1, 5)), np.asarray([[-12.0, -12.0, 1.0]])])
def test_a_degenerate_histogram_is_drawn(values):
    assert plots.histogram(vaccine(log_kl=values, threshold=0.0), "x").startswith("<svg ")


def test_a_diagnosis_shows_what_there_is():
    assert plots.diagnosis(vaccine(synthetic=None, clean=None, triggered=None), "x") is None
    svg = plots.diagnosis(vaccine(clean=None), "x")
    assert "triggered test images" in svg and "clean test images" not in svg


def test_trigger_sizes_are_bars_of_which_the_smallest_warns():
    svg = plots.sizes(inversion(), {0: "cat", 1: "dog", 2: "a name without end"}, "x")
    assert [svg.count(f"fill: var(--{color})") for color in ("tail", "bulk")] == [2, 2]  # a bar and its flip rate
    assert all(f">{words}</text>" in svg for words in ("cat", "dog", "a name withou…", "90 %", "100 %", "25 %"))
    label = re.search(r'aria-label="([^"]*)"', svg)[1]
    assert "cat: 40.0 pixels, flips 90 %; dog (smallest): 6.5 pixels, flips 100 %; a name without end: 50.0" in label
    assert "Median of all classes: 40.0 pixels" in label


def test_only_the_named_classes_have_a_bar():
    svg = plots.sizes(inversion(), {1: "dog", 2: "<b>$x$"}, "x")
    assert ">90 %</text>" not in svg and "cat" not in svg
    assert "<b>" not in svg and "&lt;b&gt;$x$" in svg


def test_triggers_of_no_pixel_are_drawn():
    assert plots.sizes(inversion(sizes=(0.0, 0.0, 0.0)), {0: "", 1: "1"}, "x").startswith("<svg ")
