"""The inversion: which triggers are shown, and whether the suspicion is told rightly."""

import dataclasses

import numpy as np

from abd_jax.defenses.trigger_inversion import anomalies
from abd_jax.report.artifacts import Inversion
from abd_jax.report.reading import read
from abd_jax.report.reproduction import render
from abd_jax.report.sections.inversion import inversion_views, suspicion


def test_of_many_inverted_triggers_the_smallest_the_suspect_s_and_the_target_s_are_shown(reproduce):
    directory = reproduce(classes=[f"sign {index}" for index in range(43)])
    path = directory / "students/badnet_sq-seed0-abd/inversion.npz"
    with np.load(path) as archive:
        np.savez(path, **(dict(archive) | {"sizes": np.arange(43.0)[::-1], "suspect": np.int32(7)}))
    (view,) = inversion_views(read(directory))
    shown = [found.name for found in view.triggers if found.uri]
    assert shown == ["sign 0", "sign 7", *(f"sign {index}" for index in range(35, 43))]
    assert len(view.triggers) == 43
    assert "some of the 43 classes" in render(read(directory))


def test_suspicions(reproduce):
    run = read(reproduce(defenses=()))
    blank = np.zeros((5, 2, 2, 1))

    def inversion(suspect: int, *sizes: float) -> Inversion:
        return Inversion(
            blank, blank, np.asarray(sizes), np.full(5, 0.9), np.asarray(anomalies(np.asarray(sizes))), suspect
        )

    right = suspicion(run, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0))
    assert right.startswith(
        "Smallest trigger: class 0, the attacker’s. It has 5.0 pixels, the median of the others 42.0"
    )
    assert right.endswith(
        "Its anomaly index is 14.72, at least the bar of 2: the class is suspected, and the trigger is used."
    )
    wrong = suspicion(run, inversion(2, 40.0, 40.0, 44.0, 38.0, 50.0))
    assert wrong.startswith("Smallest trigger: class 2, not the attacker’s.")
    assert wrong.endswith(
        "Its anomaly index is −1.25, below the bar of 2: no class is suspected, and the trigger is not used."
    )
    strict = dataclasses.replace(run, preset={"inversion": {"anomaly": 16}})
    assert suspicion(strict, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0)).endswith(
        "bar of 16: no class is suspected, and the trigger is not used."
    )
    unknown = dataclasses.replace(run, preset={})
    assert suspicion(unknown, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0)).startswith("Smallest trigger: class 0.")
