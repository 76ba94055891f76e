"""Synthesized images."""

import numpy as np
import pytest

from abd_jax.report.reading import read
from abd_jax.report.sections import galleries


def test_many_classes_are_cut_to_the_largest_and_the_target(reproduce):
    run = read(reproduce(classes=[f"sign {index}" for index in range(43)]))
    predictions = np.repeat(np.arange(43), np.arange(43))
    shares = galleries.class_shares(run, predictions)
    assert [share.name for share in shares] == ["sign 0", *(f"sign {index}" for index in range(34, 43)), "33 others"]
    assert shares[0].is_target and shares[0].share == 0
    assert sum(share.share for share in shares) == pytest.approx(1)
