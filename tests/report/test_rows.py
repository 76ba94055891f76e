"""Rows of results: each malformed one is named, and a single run's counts too."""

import pytest

from abd_jax.report.rows import parse_row, read_rows

ROW = {
    "preset": "digits",
    "dataset": "digits",
    "method": "zskt",
    "trigger": "badnet_sq",
    "seed": 0,
    "role": "student",
    "defense": "abd",
    "acc": 0.9,
    "asr": 0.0,
    "ra": 1,
    "seconds": 12.5,
}


def test_results_of_single_runs_count_before_results_json_lists_them(reproduce):
    directory = reproduce()
    (directory / "results.json").unlink()
    assert {(row.role, row.defense) for row in read_rows(directory)} == {
        ("teacher", "none"),
        ("student", "none"),
        ("student", "abd"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acc": 1.7}, r"acc 1.7: allowed are numbers in \[0, 1\]"),
        ({"asr": float("nan")}, r"asr nan: allowed"),
        ({"ra": "1"}, r"ra '1': allowed"),
        ({"ra": True}, r"ra True: allowed"),
        ({"seconds": -1}, r"seconds -1: allowed are numbers from 0"),
        ({"seconds": float("inf")}, r"seconds inf: allowed"),
        ({"seed": 0.5}, r"seed 0.5: allowed are whole numbers"),
        ({"trigger": None}, r"trigger None: allowed is text"),
        ({"role": "judge"}, r"role 'judge': allowed are teacher, student"),
    ],
)
def test_a_bad_row_names_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_row(ROW | changes)


def test_a_row_without_a_field_names_it():
    with pytest.raises(ValueError, match=r"row 4: the field 'ra' is missing"):
        parse_row({name: value for name, value in ROW.items() if name != "ra"}, "row 4")


def test_whole_numbers_serve_as_rates():
    assert parse_row(ROW).ra == 1.0
