"""Values in words."""

import pytest

from abd_jax.report import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61.2, "1 min 01 s"), (3599.7, "1 h 00 min"), (7800.0, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert formats.duration(seconds) == text
