"""The main job as a user runs it: processes of `python -m experiments`, on real digits, too short to learn anything."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest

DIGITS = [
    "digits",
    *("--teacher.architecture", "wrn-10-1", "--teacher.epochs", "1"),
    *("--student.cycles", "60", "--student.updates", "1", "--student.batch", "8"),
    *("--student.evaluate-every", "30", "--student.checkpoint-every", "20", "--synthesis.features", "4"),
    *("--inversion.steps", "1", "--inversion.images", "4"),
]
COLUMNS = {"preset", "dataset", "method", "trigger", "seed", "role", "defense", "acc", "asr", "ra", "seconds"}
SECTIONS = ["results", "curves", "trigger", "synthesized", "vaccine", "inversion", "timings", "configuration", "origin"]


def command(*argv):
    return [sys.executable, "-m", "experiments", *map(str, argv)]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Starts a command in a process of its own; all share what they compile."""
    cache = tmp_path_factory.mktemp("compiled")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(*argv):
        return subprocess.Popen(
            command(*argv), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def finish(process, code=0):
    out, err = process.communicate(timeout=500)
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def run(experiments, tmp_path_factory):
    """`reproduce`, terminated in the midst of its first student and resumed."""
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    job = ["reproduce", *DIGITS, "--defenses", "none", "abd", "clean_kd", "--clean-kd.epochs", "1", "--out", out]
    first = experiments(*job)
    metrics = out / "students" / "badnet_sq-seed0-none" / "metrics.jsonl"
    while first.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    _, said = finish(first, code=143)
    assert re.search(r"error: .*badnet_sq-seed0-none: saved at step \d+ of 60; go on with: python -m exp", said)
    assert said.endswith(f"; go on with: python -m experiments {shlex.join(map(str, job))} --resume\n")
    assert not (out / "students" / "badnet_sq-seed0-none" / "result.json").exists()
    said, _ = finish(experiments(*job, "--resume"))
    assert str(out / "report.html") in said.replace("\n", "")
    return out


@pytest.fixture(scope="module")
def rows(run):
    return json.loads((run / "results.json").read_text())


def test_results_are_what_the_contract_says(rows):
    assert [(row["role"], row["defense"]) for row in rows] == [
        ("teacher", "none"),
        ("student", "none"),
        ("student", "abd"),
        ("student", "clean_kd"),
    ]
    for row in rows:
        assert set(row) == COLUMNS
        fixed = (row["preset"], row["dataset"], row["method"], row["trigger"], row["seed"])
        assert fixed == ("digits", "digits", "zskt", "badnet_sq", 0)
        assert all(0 <= row[rate] <= 1 for rate in ("acc", "asr", "ra")) and row["seconds"] > 0
        assert row["asr"] + row["ra"] <= 1 + 1e-6  # shares in float32


class Page(HTMLParser):
    """What there is in each section of a page, and whatever the page loads from elsewhere."""

    def __init__(self):
        super().__init__()
        self.sections, self.foreign, self.open = {}, [], None

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "section":
            self.open = given["id"]
            self.sections[self.open] = []
        elif self.open:
            self.sections[self.open].append(tag)
        source = given.get("href" if tag == "link" else "src", "data:")
        if not source.startswith("data:"):
            self.foreign.append((tag, source))

    def handle_endtag(self, tag):
        if tag == "section":
            self.open = None


def test_the_report_is_one_file_with_every_part(run, rows):
    text = (run / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert list(page.sections) == SECTIONS and not page.foreign
    for name in ("curves", "trigger", "synthesized", "vaccine", "inversion"):
        assert {"img", "svg"} & set(page.sections[name]), name
    for name in ("results", "timings", "configuration", "origin"):
        assert "table" in page.sections[name], name
    assert page.sections["synthesized"].count("img") >= 2  # vanilla and ABD side by side
    for row in rows:
        assert f"{100 * row['acc']:.1f}" in text
    for said in ("student.cycles", "jax", "orbax-checkpoint", "reproduce digits"):
        assert said in text


def test_evaluate_agrees_with_the_table(experiments, run, rows):
    said, _ = finish(experiments("evaluate", run / "students" / "badnet_sq-seed0-none", "--json"))
    seen = json.loads(said)
    assert {name: seen[name] for name in ("role", "defense", "acc", "asr", "ra", "trigger", "seed")} == {
        name: rows[1][name] for name in ("role", "defense", "acc", "asr", "ra", "trigger", "seed")
    }


def test_a_student_distilled_by_itself_without_a_stop_is_that_of_the_resumed_run(experiments, run, rows, tmp_path):
    teacher = run / "teachers" / "badnet_sq-seed0"
    finish(experiments("distill", *DIGITS, "--teacher", teacher, "--defense", "none", "--out", tmp_path / "student"))
    row = json.loads((tmp_path / "student" / "result.json").read_text())
    assert row | {"seconds": 0} == rows[1] | {"seconds": 0}
