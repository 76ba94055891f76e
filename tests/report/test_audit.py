"""The health report: right in its numbers, self-contained, every picture with words."""

import json
import re

import numpy as np
import pytest

from abd_jax.report import audit as pages
from abd_jax.report.calibration import errors
from abd_jax.training.audit import Comparison, Examination
from abd_jax.training.calibration import Calibrated, calibrate
from tests.report.parsed import LOADING, Page
from tests.training.test_calibration import ROWS

ORIGIN = {"command": "python -m experiments audit <&>", "device": "cpu", "versions": {"jax": "0"}, "seconds": 61.0}


def examination(anomaly=9.0, classes=3, seed=0, side=8) -> Examination:
    rng = np.random.default_rng(seed)
    masks = rng.uniform(0.2, 0.5, (classes, side, side, 1))
    masks[1] /= 8
    return Examination(
        signs={"anomaly": anomaly, "tail": 0.01, "agreement": None, "lipschitz": 3.25},
        reasons={"agreement": "too few kernels"},
        masks=masks,
        patterns=np.ones((classes, side, side, 1)),
        sizes=masks.sum((1, 2, 3)),
        flips=np.full(classes, 0.75),
        suspect=1,
        log_kl=rng.normal(size=(2, 64)),
        threshold=-2.5,
        enabled=True,
        channels={"conv1": np.array([0.0, 3.25, -1.0]), "conv2": np.array([1.0, -1.0])},
        images=rng.integers(0, 255, (16, side, side, 1), dtype=np.uint8),
        predictions=np.repeat([0, 1], [48, 16]),
    )


NOTES = {"architecture": "wrn-16-1", "digest": "5f" * 32}


def write(path, student=True, rows=ROWS, names=("a", "<b>", "c"), notes=NOTES, bar=2.0, **options):
    other = ("s", {"architecture": "wrn-10-1"}, examination(0.5), Comparison(0.5, 0.25, 0.875)) if student else None
    content = pages.write(
        path / "out", names=names, notes=notes, teacher=("t.pth", examination(**options)), student=other, rows=rows,
        deviations=3.0, bar=bar, origin=ORIGIN,
    )  # fmt: skip
    text = (path / "out" / "report.html").read_text()
    return content, text, Page(text)


def test_signs_stand_beside_their_thresholds_and_errors(tmp_path):
    content, text, parsed = write(tmp_path)
    known = calibrate(ROWS)["anomaly"]
    assert known.threshold == 3.0
    wrong = errors(known)
    assert wrong.startswith(f"missed {known.missed[0]} of 6 (")
    assert ["anomaly", "9.00", "3.00", "speaks for a backdoor", "0.50", "does not speak for one", wrong] in parsed.rows
    assert any(row[:4] == ["agreement", "–", "3.00", "not measured: too few kernels"] for row in parsed.rows)
    assert content["headline"].startswith("2 of 3 calibrated signs speak for a backdoor in this network: anomaly, lip")
    assert "In the student 1 of these is gone: anomaly." in content["headline"] and content["headline"] in text
    assert "turns 87.5\u202f% of other images in the teacher, and 25.0\u202f% in the student" in text
    assert json.loads((tmp_path / "out" / "audit.json").read_text()) == json.loads(json.dumps(content))
    assert content["student"]["signs"]["anomaly"] == 0.5 and content["comparison"]["transfer"] == 0.25


def test_the_page_is_one_file_that_loads_nothing_and_says_every_picture(tmp_path):
    _, text, parsed = write(tmp_path)
    for tag, attributes in parsed.elements:
        for name in LOADING & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), (tag, name)
    assert not re.search(r"url\(\s*['\"]?(?!#)", text) and "@import" not in text
    assert len(parsed.find("img")) == 2 * 3 + 1 and all(image["alt"] for image in parsed.find("img"))
    assert len(parsed.find("svg")) == 2 * 2 + 1 and all(svg["aria-label"] for svg in parsed.find("svg"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {anchor["href"][1:] for anchor in parsed.find("a")} <= set(ids)
    assert "<b>" not in text and "&lt;b&gt;" in text and "audit &lt;&amp;&gt;" in text


def test_without_calibration_nothing_is_said(tmp_path):
    content, text, _ = write(tmp_path, student=False, rows=[])
    assert content["headline"] == "0 of 0 calibrated signs speak for a backdoor in this network."
    assert "not calibrated" in text and "Not known: there is no calibration" in text


def test_what_a_model_card_says_of_an_audit(tmp_path):
    content, _, _ = write(tmp_path)
    signs = pages.signs_of(content, NOTES["digest"])
    wrong = errors(calibrate(ROWS)["anomaly"])
    assert signs["anomaly"] == f"9, speaks for a backdoor; on the zoo: {wrong}"
    assert signs["agreement"].startswith("–, not measured: too few kernels; ")
    with pytest.raises(ValueError, match="no audit of this network"):
        pages.signs_of(content, "00")


def test_thresholds_of_other_networks_are_called_a_hint(tmp_path):
    hint = "The thresholds were measured on other networks and are but a hint for this one: "
    other = "architecture resnet-18 (there wrn-16-1); images 8×8×1 (there 16×16×1); classes 3 (there 10); data set not"
    said = pages.caveat({"architecture": "resnet-18"}, examination(), ROWS)
    assert said == f"{hint}{other} known (there digits)."
    alike = examination(classes=10, side=16)
    known = {"architecture": "wrn-16-1", "dataset": "digits"}
    assert pages.caveat(known, alike, ROWS) == pages.caveat({}, examination(), []) == ""
    said = pages.caveat(known | {"dataset": "mnist"}, alike, ROWS)
    assert said == f"{hint}data set mnist (there digits)."
    content, text, _ = write(tmp_path, student=False, notes={"architecture": "resnet-18"})
    assert content["caveat"].startswith(hint) and content["caveat"] in text


@pytest.mark.parametrize(
    ("anomaly", "bar", "said"),
    [
        (9.0, 2.0, ""),
        (1.0, 2.0, ""),
        (2.5, 2.0, " The anomaly 2.5 reaches 2: the defense would suspect class b; it does not speak for one."),
        (4.0, 5.0, " The anomaly 4 is below 5: the defense would suspect no class."),
    ],
)
def test_where_the_zoo_and_the_defense_see_the_anomaly_differently(tmp_path, anomaly, bar, said):
    content, text, _ = write(tmp_path, student=False, names=("a", "b", "c"), anomaly=anomaly, bar=bar)
    assert content["headline"].partition("lipschitz.")[2] == said and content["headline"] in text


def test_a_sign_that_beats_no_chance_says_nothing():
    useless = Calibrated(0.5, None, (4, 4), (0, 4))
    assert pages.verdict(7.0, useless) == "says nothing: no better than chance on the zoo"
    assert pages.verdict(None, useless, "why") == "not measured: why"


def test_many_classes_show_the_smallest(tmp_path):
    names = tuple(map(str, range(43)))
    _, _, parsed = write(tmp_path, student=False, names=names, classes=43)
    assert len(parsed.find("img")) == 20 + 1
    assert sum(row[0].startswith("1 smallest") for row in parsed.rows) == 1
