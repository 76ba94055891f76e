"""Parsing a directory of `reproduce`: order, half finished runs, and one clear line for every malformed file."""

import json
from pathlib import Path

import numpy as np
import pytest

from abd_jax.report.reading import read


def test_everything_comes_in_the_order_asked_for(reproduce):
    directory = reproduce(triggers=("smooth", "badnet_sq"), seeds=(0, 1), defenses=("none", "abd"))
    run = read(directory)
    assert [(row.trigger, row.role, row.defense, row.seed) for row in run.rows[:6]] == [
        ("smooth", "teacher", "none", 0),
        ("smooth", "teacher", "none", 1),
        ("smooth", "student", "none", 0),
        ("smooth", "student", "none", 1),
        ("smooth", "student", "abd", 0),
        ("smooth", "student", "abd", 1),
    ]
    assert [(s.trigger, s.seed, s.defense) for s in run.students[:3]] == [
        ("smooth", 0, "none"),
        ("smooth", 0, "abd"),
        ("smooth", 1, "none"),
    ]
    assert run.target == 0
    assert run.class_name(3) == "3"
    assert run.class_name(11) == "11"
    student = run.students[1]
    assert student.finished and student.vaccine is not None and student.samples is not None
    assert student.teacher_digest == "5f" * 32
    assert student.curve.last_step == 600 and student.curve.steps[-1] == 600
    assert student.inversion is not None and student.inversion.suspect == 0
    assert run.students[0].vaccine is None and run.students[0].inversion is None


def test_a_trigger_name_may_hold_dashes(reproduce):
    run = read(reproduce(triggers=("my-seed1-trigger",)))
    assert {student.trigger for student in run.students} == {"my-seed1-trigger"}
    assert {student.defense for student in run.students} == {"none", "abd"}


def test_a_torn_last_line_of_metrics_is_passed_over(reproduce):
    directory = reproduce()
    path = directory / "students/badnet_sq-seed0-abd/metrics.jsonl"
    before = read(directory).students[1].curve
    path.write_text(path.read_text() + '{"step": 620, "acc": 0.')
    assert read(directory).students[1].curve == before


MALFORMED = [
    ("results.json", b"[{", "not JSON"),
    ("results.json", b"\xff\xfe", "not readable"),
    ("results.json", b"{}", "expected a list"),
    ("results.json", b"[1]", "row 0: expected an object"),
    ("results.json", b"[" * 100_000, "not JSON"),
    ("config.json", b"[]", "expected an object"),
    ("config.json", b'{"seeds": "0"}', "seeds: expected a list of int"),
    ("config.json", b'{"versions": 3}', "expected an object"),
    ("students/badnet_sq-seed0-abd/config.json", b"{", "not JSON"),
    ("teachers/badnet_sq-seed0/config.json", b'{"classes": 10}', "classes: expected a list of str"),
    ("students/badnet_sq-seed0-abd/metrics.jsonl", b'{"step": 1}\nnonsense\n{"step": 2}\n', "line 2 is not JSON"),
    ("students/badnet_sq-seed0-abd/metrics.jsonl", b'{"stage": 1}\n', "line 1: expected an object with a number"),
    ("students/badnet_sq-seed0-abd/metrics.jsonl", b'{"step": 1, "acc": 2, "asr": 0}\n', "line 1: acc and asr"),
    ("students/badnet_sq-seed0-abd/samples.npz", b"PK\x03\x04 torn", "not a readable npz"),
    ("students/badnet_sq-seed0-abd/vaccine.npz", b"", "not a readable npz"),
    ("students/badnet_sq-seed0-abd/inversion.npz", b"nonsense", "not a readable npz"),
    ("teachers/badnet_sq-seed0/examples.npz", b"nonsense", "not a readable npz"),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_a_malformed_file_is_one_line_that_names_it(reproduce, name, content, message):
    directory = reproduce()
    (directory / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(directory)
    assert str(directory / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("samples.npz", {"images": np.zeros((2, 4, 4, 1), np.uint8)}, "missing arrays: predictions"),
        ("samples.npz", {"images": np.zeros((2, 4, 4)), "predictions": np.zeros(2, int)}, "expected uint8"),
        (
            "samples.npz",
            {"images": np.zeros((2, 4, 4, 1), np.uint8), "predictions": np.zeros(3, int)},
            "expected 2 whole",
        ),
        ("samples.npz", {"images": np.array([{}], dtype=object), "predictions": np.zeros(1)}, "not a readable npz"),
    ],
)
def test_arrays_of_the_wrong_kind_are_named(reproduce, name, arrays, message):
    directory = reproduce()
    path = directory / "students/badnet_sq-seed0-abd" / name
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read(directory)
    assert str(path) in str(caught.value)


def test_a_vaccine_that_is_not_finite_is_named(reproduce):
    directory = reproduce()
    path = directory / "students/badnet_sq-seed0-abd/vaccine.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **(arrays | {"log_kl": np.full((1, 4), np.nan)}))
    with pytest.raises(ValueError, match=r"vaccine\.npz: log_kl: expected finite"):
        read(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((3, 4, 4), np.float32)}, r"masks: expected \[2 or more classes"),
        ({"masks": np.zeros((1, 4, 4, 1), np.float32)}, r"masks: expected \[2 or more classes"),
        ({"masks": np.zeros((3, 4, 4, 2), np.float32)}, r"masks: expected numbers in \[0, 1\] of shape \[3, 4, 4, 1\]"),
        ({"masks": np.full((3, 4, 4, 1), 1.5)}, r"masks: expected numbers in \[0, 1\]"),
        ({"patterns": np.full((3, 4, 4, 3), np.nan)}, r"patterns: expected numbers in \[0, 1\]"),
        ({"patterns": np.zeros((3, 4, 5, 3))}, r"patterns: .* of shape \[3, 4, 4, 3\]"),
        ({"patterns": np.zeros((3, 4, 4, 3), np.uint8)}, r"patterns: expected numbers in"),
        ({"sizes": np.asarray([1.0, 2.0])}, r"sizes: expected numbers in \[0, 16\] of shape \[3\]"),
        ({"sizes": np.asarray([1.0, 2.0, -1.0])}, r"sizes: expected numbers in \[0, 16\]"),
        ({"sizes": np.asarray([1.0, 2.0, np.inf])}, r"sizes: expected numbers in \[0, 16\]"),
        ({"flips": np.asarray([0.0, 1.1, 0.0])}, r"flips: expected numbers in \[0, 1\] of shape \[3\]"),
        ({"suspect": np.int32(3)}, r"suspect: expected one whole number from 0 to 2"),
        ({"suspect": np.float32(1)}, r"suspect: expected one whole number"),
        ({"suspect": np.asarray([1])}, r"suspect: expected one whole number"),
        ({"anomalies": np.zeros(2, np.float32)}, r"anomalies: expected 3 finite numbers"),
        ({"anomalies": np.asarray([0.0, np.nan, 0.0])}, r"anomalies: expected 3 finite numbers"),
        ({"flips": None}, r"missing arrays: flips"),
    ],
)
def test_a_malformed_inversion_is_named(reproduce, changes, message):
    directory = reproduce()
    path = directory / "students/badnet_sq-seed0-abd/inversion.npz"
    arrays = {
        "masks": np.zeros((3, 4, 4, 1), np.float32),
        "patterns": np.ones((3, 4, 4, 3), np.float32),
        "sizes": np.zeros(3, np.float32),
        "flips": np.ones(3, np.float32),
        "anomalies": np.zeros(3, np.float32),
        "suspect": np.int32(2),
    }
    np.savez(path, **arrays)
    assert read(directory).students[1].inversion.suspect == 2
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    with pytest.raises(ValueError, match=message) as caught:
        read(directory)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_inversion_of_an_older_version_is_none(reproduce):
    directory = reproduce()
    path = directory / "students/badnet_sq-seed0-abd/inversion.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    del arrays["anomalies"]
    np.savez(path, **arrays)
    assert read(directory).students[1].inversion is None


def test_a_directory_that_is_none_says_so(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        read(tmp_path / "nowhere")


def test_a_bare_configuration_is_enough(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"preset": "digits"}))
    run = read(tmp_path)
    assert run.rows == () and run.students == () and run.target is None
