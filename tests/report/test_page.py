"""The page: one file that needs no other, right in its numbers, safe with hostile names, and never half written."""

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from abd_jax.report import page, write_page
from abd_jax.report.reading import Inversion, Vaccine, read
from tests.report.conftest import make_directory

VOID = {"meta", "link", "img", "br", "hr"}
LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}


class Page(HTMLParser):
    """Elements with their attributes and the text inside, and whether they nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.cell: list[str] | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = []

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th") and self.cell is not None:
            self.rows[-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


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
        f"Suspected, the attacker’s: class 0. Its trigger has {size:.1f} pixels, the median of the others "
        f"{others:.1f}, and flips 99.0\u202f% of other images." in text
    )
    assert ["3", f"{arrays['sizes'][3]:.1f}", f"{100 * arrays['flips'][3]:.1f}\u202f%"] in [
        row[:3] for row in parsed.rows
    ]

    def picture(words: str) -> str:
        return next(image["src"] for image in parsed.find("img") if words in image["alt"])

    shown = picture("Trigger found for class 0, the suspected one").partition(",")[2]
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


def test_of_many_inverted_triggers_the_smallest_the_suspect_s_and_the_target_s_are_shown(reproduce):
    directory = reproduce(classes=[f"sign {index}" for index in range(43)])
    path = directory / "students/badnet_sq-seed0-abd/inversion.npz"
    with np.load(path) as archive:
        np.savez(path, **(dict(archive) | {"sizes": np.arange(43.0)[::-1], "suspect": np.int32(7)}))
    (view,) = page.inversion_views(read(directory))
    shown = [found.name for found in view.triggers if found.uri]
    assert shown == ["sign 0", "sign 7", *(f"sign {index}" for index in range(35, 43))]
    assert len(view.triggers) == 43
    assert "some of the 43 classes" in written(directory)[0]


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
    assert page.render(read(directory)) == page.render(read(directory))


def test_many_classes_are_cut_to_the_largest_and_the_target(reproduce):
    run = read(reproduce(classes=[f"sign {index}" for index in range(43)]))
    predictions = np.repeat(np.arange(43), np.arange(43))
    shares = page.class_shares(run, predictions)
    assert [share.name for share in shares] == ["sign 0", *(f"sign {index}" for index in range(34, 43)), "33 others"]
    assert shares[0].is_target and shares[0].share == 0
    assert sum(share.share for share in shares) == pytest.approx(1)


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
    assert page.verdict(vaccine()).startswith("Kept without a choice")
    assert page.verdict(vaccine(tail=0.03)).startswith("Accepted at trial 1")
    assert page.verdict(vaccine(enabled=False)).startswith("Rejected: the one draw did not reach")
    assert page.verdict(vaccine(enabled=False, trials=8)).startswith("Rejected: none of the 8 draws reached")


def test_suspicions(reproduce):
    run = read(reproduce(defenses=()))
    blank = np.zeros((5, 2, 2, 1))

    def inversion(suspect: int, *sizes: float) -> Inversion:
        return Inversion(blank, blank, np.asarray(sizes), np.full(5, 0.9), suspect)

    right = page.suspicion(run, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0))
    assert right.startswith(
        "Suspected, the attacker’s: class 0. Its trigger has 5.0 pixels, the median of the others 42.0"
    )
    assert right.endswith("Its anomaly index is 14.72, at least the bar of 2: it is used.")
    wrong = page.suspicion(run, inversion(2, 40.0, 40.0, 44.0, 38.0, 50.0))
    assert wrong.startswith("Suspected, wrongly: class 2.")
    assert wrong.endswith("Its anomaly index is −1.25, below the bar of 2: it is not used.")
    strict = dataclasses.replace(run, preset={"inversion": {"anomaly": 16}})
    assert page.suspicion(strict, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0)).endswith("bar of 16: it is not used.")
    unknown = dataclasses.replace(run, preset={})
    assert page.suspicion(unknown, inversion(0, 5.0, 40.0, 44.0, 38.0, 50.0)).startswith("Suspected: class 0.")


def test_trials_use_the_last_one_s_deviations():
    log_kl = np.random.default_rng(0).normal(0, 1, (2, 1000))
    log_kl[0, :30] = -9
    threshold = log_kl[1].mean() - 2 * log_kl[1].std()
    first, last = page.vaccine_trials(vaccine(log_kl=log_kl, threshold=threshold, tail=0.5))
    assert first.tail == pytest.approx(np.mean(log_kl[0] < log_kl[0].mean() - 2 * log_kl[0].std()))
    assert last.tail == 0.5


def test_separation_is_the_area_under_the_curve():
    clean, triggered = np.asarray([0.0, 1.0, 1.0, 2.0]), np.asarray([-1.0, 1.0, 3.0])
    pairs = [(c > t) + 0.5 * (c == t) for c in clean for t in triggered]
    assert page.separation(vaccine(clean=clean, triggered=triggered)) == pytest.approx(np.mean(pairs))
    assert page.separation(vaccine(clean=clean)) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61.2, "1 min 01 s"), (3599.7, "1 h 00 min"), (7800.0, "2 h 10 min")],
)
def test_durations(seconds, text):
    assert page.duration(seconds) == text
