"""The page of a zoo."""

import pytest

from abd_jax.report.calibration import interval, write_calibration
from abd_jax.training.audit import SIGNS
from abd_jax.training.calibration import read_rows
from tests.report.parsed import Page
from tests.report.test_audit import ORIGIN
from tests.training.test_calibration import ROWS


def test_interval():
    low, high = interval(1, 6)  # Wilson (1927), by the formula's textbook value
    assert (low, high) == pytest.approx((0.0301, 0.5635), abs=2e-4)
    assert interval(0, 0) == (0.0, 1.0)
    assert interval(0, 6)[0] == 0.0


def test_a_calibration_leaves_rows_and_a_page(tmp_path):
    known = write_calibration(tmp_path, ROWS, ORIGIN)
    assert read_rows(tmp_path) == ROWS and set(known) == set(SIGNS)
    parsed = Page((tmp_path / "report.html").read_text())
    assert ["a0", "blend", "0.0\u202f%", "4.00", "4.00", "4.00", "4.00"] in parsed.rows
    assert ["c3", "clean", "0.0\u202f%", "5.00", "5.00", "5.00", "5.00"] in parsed.rows
    assert any(row[:3] == ["tail", "0.83", "3.00"] for row in parsed.rows)
