"""The page: one file that needs no other, right in its numbers, safe with hostile names, and never half written."""

import base64
import hashlib
import io
import itertools
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from abd_jax.report import write_page
from abd_jax.report.reading import read
from abd_jax.report.reproduction import render
from tests.report.conftest import make_directory
from tests.report.parsed import LOADING, Page


def written(directory) -> tuple[str, Page]:
    path = write_page(directory)
    assert path == directory / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, Page]:
    """The page of a finished run of `make demo`, for tests that only look at it."""
    return written(make_directory(tmp_path_factory.mktemp("finished") / "demo"))


def test_the_page_is_one_file_that_loads_nothing(reproduce):
    directory = reproduce(seeds=(0, 1), defenses=("none", "sv", "abd", "clean_kd"))
    text, parsed = written(directory)
    for tag, attributes in parsed.elements:
        for name in LOADING & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), (tag, name)
    assert not re.search(r"url\(\s*['\"]?(?!#)", text) and "@import" not in text
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json", "report.html", "results.json", "students", "teachers",
    ]  # fmt: skip


def test_the_page_s_own_script_is_the_only_one_allowed(finished):
    text, parsed = finished
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(meta for meta in parsed.find("meta") if meta.get("http-equiv") == "Content-Security-Policy")[
        "content"
    ]
    assert len(scripts) == 1
    assert policy.startswith("default-src 'none'") and f"'sha256-{digest}'" in policy


def test_every_image_has_words(finished):
    _, parsed = finished
    assert len(parsed.find("img")) == 8 * 3 + 2 + 10 + 1
    assert all(image["alt"] for image in parsed.find("img"))
    assert len(parsed.find("svg")) == 5
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.find("svg"))
    assert len(parsed.find("figcaption")) == len(parsed.find("figure")) == 5


def test_ids_are_unique_and_every_anchor_leads_somewhere(reproduce):
    _, parsed = written(reproduce(triggers=("badnet_sq", "blend")))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {anchor["href"][1:] for anchor in parsed.find("a")} <= set(ids)


def test_headings_leave_out_no_level(finished):
    _, parsed = finished
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_table_holds_mean_deviation_and_count(reproduce):
    directory = reproduce(seeds=(0, 1, 2))
    _, parsed = written(directory)
    listed = json.loads((directory / "results.json").read_text())
    values = np.asarray(
        [[r["acc"], r["asr"], r["ra"]] for r in listed if r["role"] == "student" and r["defense"] == "abd"]
    )
    mean, std = 100 * values.mean(axis=0), 100 * values.std(axis=0, ddof=1)
    rates = [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean, std, strict=True)]
    assert ["badnet_sq", "student, ABD", *rates, "3"] in parsed.rows
    assert ["badnet_sq", "1", "student, ABD", *(f"{100 * value:.1f}" for value in values[1])] in parsed.rows
    assert sum(row[1:3] == ["2", "teacher"] for row in parsed.rows) == 1


def test_one_seed_has_no_deviation(finished):
    text, parsed = finished
    assert ["badnet_sq", "student, ABD", "91.2", "2.0", "89.0", "1"] in parsed.rows
    assert "of one seed each" in text


def test_the_headline_stands_on_top(finished):
    text, _ = finished
    assert "With ABD: 2.0\u202f%, ACC 91.2\u202f% against 92.0\u202f%." in text
    assert text.index("With ABD") < text.index("<table")


def test_the_vaccine_is_told_and_its_test_images_are_diagnosis(finished):
    text, _ = finished
    assert "Accepted at trial 3" in text
    assert "never used for a choice" in text
    assert "All 3 trials" in text


def test_a_rejected_vaccine_is_told(reproduce):
    text, _ = written(reproduce(enabled=False))
    assert "Rejected: none of the 8 draws" in text and "switched off for this run" in text


def test_the_inversion_is_told_and_its_triggers_are_shown(reproduce):
    directory = reproduce(defenses=("sr", "abd"))
    with np.load(directory / "students/badnet_sq-seed0-abd/inversion.npz") as archive:
        arrays = dict(archive)
    text, parsed = written(directory)
    size, others = arrays["sizes"][0], np.median(arrays["sizes"][1:])
    assert (
        f"Smallest trigger: class 0, the attacker’s. It has {size:.1f} pixels, the median of the others "
        f"{others:.1f}, and flips 99.0\u202f% of other images." in text
    )
    assert ["3", f"{arrays['sizes'][3]:.1f}", f"{100 * arrays['flips'][3]:.1f}\u202f%"] in [
        row[:3] for row in parsed.rows
    ]

    def picture(words: str) -> str:
        return next(image["src"] for image in parsed.find("img") if words in image["alt"])

    shown = picture("Trigger found for class 0, the smallest").partition(",")[2]
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(base64.b64decode(shown)))), np.round(255 * arrays["masks"][0, ..., 0])
    )
    assert picture("true trigger badnet_sq") == picture("What the trigger changed, amplified")


def test_without_examples_the_inverted_triggers_stand_alone(reproduce):
    directory = reproduce()
    (directory / "teachers/badnet_sq-seed0/examples.npz").unlink()
    text, parsed = written(directory)
    assert len(parsed.find("img")) == 2 + 10
    assert "true trigger badnet_sq" not in text and "for comparison only" not in text


def test_configuration_versions_device_and_command_are_there(finished):
    text, parsed = finished
    assert "<code>python -m experiments reproduce digits --out runs/demo</code>" in text
    for name, value in (
        ("learning_rate", "0.1"),
        ("suspicion", "both"),
        ("b", "yes"),
        ("a", "–"),
        ("on", "student, teacher"),
    ):
        assert [name, value] in parsed.rows
    for words in ("0.10.2", "cpu (2 cores)", "2026-11-22 21:36 UTC", "5f5f5f5f5f5f5f5f"):
        assert words in text


def test_hostile_text_stays_text(reproduce):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}$x^2$"
    directory = reproduce(command=evil, classes=[evil, *"123456789"])
    config = json.loads((directory / "config.json").read_text())
    config |= {"device": evil, "started": evil, "versions": {evil: evil}}
    config["preset"] |= {"name": evil, evil: evil, "more": {evil: [evil]}}
    (directory / "config.json").write_text(json.dumps(config))
    rows = json.loads((directory / "results.json").read_text())
    for row in rows:
        row |= {"trigger": evil, "defense": evil, "dataset": evil, "method": evil}
    (directory / "results.json").write_text(json.dumps(rows))
    for path in (directory / "students").iterdir():
        (path / "config.json").write_text(json.dumps({"teacher": {"path": evil, "digest": evil}}))
    (directory / "students/badnet_sq-seed0-none").rename(directory / "students/$<i>&-seed0-<b>'\"")
    text, parsed = written(directory)
    assert len(parsed.find("script")) == 1
    assert not parsed.find("i>") and not parsed.find("b")
    assert "49$x^2$" not in text
    assert "<script>alert" not in text and "<img src=x" not in text
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_a_half_finished_directory_says_what_is_missing(reproduce):
    text, parsed = written(reproduce(unfinished=True))
    assert "Unfinished: 2 of 3 networks have a result" in text
    assert "No defended student has finished yet." in text
    assert "No run with a vaccine is there." in text
    assert "No run with a trigger inversion is there." in text
    assert len(parsed.find("svg")) == 2  # the unfinished student's curve is shown as far as it goes


def test_a_directory_with_nothing_but_its_configuration_is_a_page(reproduce):
    directory = reproduce(defenses=())
    for path in (directory / "results.json", *directory.glob("*/*/*")):
        path.unlink()
    text, parsed = written(directory)
    assert text.count('class="absent"') == 7
    assert parsed.find("img") == []


def test_a_finished_directory_has_no_notice(finished):
    text, _ = finished
    assert "Unfinished" not in text and 'class="absent"' not in text


def test_an_error_leaves_the_old_page(reproduce, monkeypatch):
    directory = reproduce()
    write_page(directory)
    before = (directory / "report.html").read_bytes()
    (directory / "results.json").write_text("[")
    with pytest.raises(ValueError, match=r"results\.json: not JSON"):
        write_page(directory)
    (directory / "results.json").write_text("[]")

    def refuse(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        write_page(directory)
    assert (directory / "report.html").read_bytes() == before
    assert not [path for path in directory.iterdir() if path.name.endswith(".tmp")]


def test_the_same_directory_gives_the_same_page(reproduce):
    directory = reproduce()
    assert render(read(directory)) == render(read(directory))
