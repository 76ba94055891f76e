"""The vaccine: its verdict in words, its trials and its separation in numbers."""

import numpy as np
import pytest

from abd_jax.report.artifacts import Vaccine
from abd_jax.report.sections.vaccine import separation, vaccine_trials, verdict


def vaccine(**changes) -> Vaccine:
    values = {
        "log_kl": np.zeros((1, 4)),
        "threshold": 0.0,
        "tail": 0.01,
        "trials": 1,
        "enabled": True,
        "tail_bar": 0.02,
    }
    return Vaccine(**(values | changes))


def test_verdicts():
    assert verdict(vaccine()).startswith("Kept without a choice")
    assert verdict(vaccine(tail=0.03)).startswith("Accepted at trial 1")
    assert verdict(vaccine(enabled=False)).startswith("Rejected: the one draw did not reach")
    assert verdict(vaccine(enabled=False, trials=8)).startswith("Rejected: none of the 8 draws reached")


def test_trials_use_the_last_one_s_deviations():
    log_kl = np.random.default_rng(0).normal(0, 1, (2, 1000))
    log_kl[0, :30] = -9
    threshold = log_kl[1].mean() - 2 * log_kl[1].std()
    first, last = vaccine_trials(vaccine(log_kl=log_kl, threshold=threshold, tail=0.5))
    assert first.tail == pytest.approx(np.mean(log_kl[0] < log_kl[0].mean() - 2 * log_kl[0].std()))
    assert last.tail == 0.5


def test_separation_is_the_area_under_the_curve():
    clean, triggered = np.asarray([0.0, 1.0, 1.0, 2.0]), np.asarray([-1.0, 1.0, 3.0])
    pairs = [(c > t) + 0.5 * (c == t) for c in clean for t in triggered]
    assert separation(vaccine(clean=clean, triggered=triggered)) == pytest.approx(np.mean(pairs))
    assert separation(vaccine(clean=clean)) is None
