"""How often a sign is wrong: the arithmetic by hand, and its file."""

import dataclasses
import json
import re

import numpy as np
import pytest

from abd_jax.training import calibration
from abd_jax.training.audit import SIGNS, Examination
from abd_jax.training.calibration import Row


def row(name, trigger, value, **signs):
    values = dict.fromkeys(SIGNS, value) | signs
    return Row(name, trigger, "digits", "wrn-16-1", name * 4, 0.0, trigger != "none", values)


ROWS = [
    *(row(f"c{i}", "none", value) for i, value in enumerate((0.0, 1.0, 2.0, 5.0))),
    *(row(f"a{i}", "blend", value) for i, value in enumerate((4.0, 4.5, 6.0))),
    *(row(f"b{i}", "sig", value) for i, value in enumerate((7.0, 1.5, 9.0))),
]


def test_area_under_the_curve():
    assert calibration.auc((0, 1, 2, 5), (4, 6, 7, 1.5)) == pytest.approx((3 + 4 + 4 + 2) / 16)
    assert calibration.auc((1,), (1,)) == 0.5


def test_the_roc_s_area_is_the_auc():
    clean, poisoned = (0.0, 1.0, 2.0, 5.0), (4.0, 6.0, 7.0, 1.5)
    points = np.asarray(calibration.roc(clean, poisoned))
    assert points[0].tolist() == [0, 0] and points[-1].tolist() == [1, 1]
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(calibration.auc(clean, poisoned))


@pytest.mark.parametrize(
    ("clean", "poisoned", "threshold"),
    [
        ((0, 1), (2, 3), 1.5),
        ((0, 1, 2, 5), (4, 6, 7, 1.5), 3.0),
        ((3, 4), (1, 2), None),
        ((1, 1), (1, 1), None),
        ((0, 10), (20, 5), 15.0),  # (0, 5) and (10, 20) separate as well: the wider gap
    ],
)
def test_threshold(clean, poisoned, threshold):
    assert calibration.best_threshold(clean, poisoned) == threshold


def test_each_teacher_is_judged_by_the_others_without_its_trigger():
    known = calibration.calibrate(ROWS)["anomaly"]
    clean, wrong = [0.0, 1.0, 2.0, 5.0], {"missed": 0, "false": 0}
    for judged in ROWS:
        value = judged.signs["anomaly"]
        others = [other for other in ROWS if other is not judged]
        if judged.poisoned:
            others = [other for other in others if other.trigger != judged.trigger]
        bar = calibration.best_threshold(
            [other.signs["anomaly"] for other in others if not other.poisoned],
            [other.signs["anomaly"] for other in others if other.poisoned],
        )
        alarm = bar is not None and value > bar
        wrong["missed"] += judged.poisoned and not alarm
        wrong["false"] += alarm and not judged.poisoned
    assert (known.missed, known.false_alarms) == ((wrong["missed"], 6), (wrong["false"], 4))
    assert known.threshold == calibration.best_threshold(clean, [4.0, 4.5, 6.0, 7.0, 1.5, 9.0]) == 3.0
    assert known.auc == pytest.approx(20 / 24)


def test_a_sign_no_better_than_chance_has_no_threshold():
    """For 4 and 6 teachers the AUC must be above ½ + 1.645·√(11 / 288) = 0.8215."""
    assert calibration.beats_chance(0.822, 4, 6) and not calibration.beats_chance(0.821, 4, 6)
    assert not calibration.beats_chance(0.1, 100, 100)
    weaker = [one if one.path != "a1" else dataclasses.replace(one, signs=one.signs | {"tail": 1.5}) for one in ROWS]
    known = calibration.calibrate(weaker)
    assert known["tail"].threshold is None and known["anomaly"].threshold == 3.0
    assert known["tail"].auc == pytest.approx(19 / 24)


def test_a_sign_that_was_not_measured_is_not_calibrated():
    rows = [dataclasses.replace(one, signs=one.signs | {"tail": None}) for one in ROWS]
    assert set(calibration.calibrate(rows)) == set(SIGNS) - {"tail"}


def test_too_small_a_zoo_is_refused():
    with pytest.raises(ValueError, match=r"4 clean teacher\(s\) and poisoned ones of 1 trigger\(s\)"):
        calibration.calibrate(ROWS[:6])


def test_a_calibration_is_read_as_it_was_written(tmp_path):
    calibration.write_rows(tmp_path / "calibration.json", ROWS)
    assert calibration.read_rows(tmp_path) == calibration.read_rows(tmp_path / "calibration.json") == ROWS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [], "a calibration needs 2 clean ones"),
        (lambda rows: [{"path": "a"}], "each teacher needs path, trigger, dataset"),
        (lambda rows: [rows[0] | {"signs": {"anomaly": 1}}], "a number or null for each of anomaly, tail"),
        (lambda rows: [rows[0] | {"poisoned": "yes"}], "poisoned is of type str"),
        (lambda rows: [rows[0] | {"signs": dict.fromkeys(SIGNS, float("nan"))}], "a number or null"),
        (lambda rows: 3, "no calibration (expected a list, found int)"),
    ],
)
def test_a_bad_calibration_is_one_line(tmp_path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(change([dataclasses.asdict(one) for one in ROWS])))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        calibration.read_rows(path)
    assert str(error.value).startswith(f"--calibration {path}") and "\n" not in str(error.value)


def test_a_teacher_attacked_in_vain_is_neither():
    found = dataclasses.replace(EMPTY, signs=dict.fromkeys(SIGNS, 1.0))
    facts = {"path": "a", "trigger": "cl", "dataset": "d", "architecture": "w", "digest": "x", "poisoned": 9}
    assert calibration.row_of(facts | {"asr": 0.2}, found) is None
    assert calibration.row_of(facts | {"asr": 0.2, "trigger": "nasty", "poisoned": 0}, found) is None
    assert calibration.row_of(facts | {"asr": 0.9, "trigger": "blind", "poisoned": 0}, found).trigger == "blind"
    assert calibration.row_of(facts | {"asr": 0.9}, found).poisoned
    clean = calibration.row_of(facts | {"asr": 0.2, "poisoned": 0}, found)
    assert not clean.poisoned and clean.trigger == "none"


EMPTY = Examination(
    signs={}, reasons={}, masks=np.zeros((2, 4, 4, 1)), patterns=np.zeros((2, 4, 4, 1)), sizes=np.zeros(2),
    flips=np.zeros(2), suspect=0, log_kl=None, threshold=0.0, enabled=False, channels={},
    images=np.zeros((1, 4, 4, 1), np.uint8), predictions=np.zeros(1, np.int32),
)  # fmt: skip
