"""Stages with their files: resume, termination, and what is left in the directory."""

import dataclasses
import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from PIL import Image

from abd_jax.defenses import trigger_inversion
from abd_jax.synthesis.bank import BankConfig
from abd_jax.synthesis.deep_inversion import DeepInversionConfig
from abd_jax.synthesis.nayer import NAYERConfig
from abd_jax.training import checkpoint, evaluate, evidence, metrics, runs, stage
from abd_jax.training.distill import Distillation
from abd_jax.training.run_directory import RunDirectory, describe
from tests.networks import network
from tests.training import small

pytestmark = pytest.mark.optax


class Recorder(stage.Silent):
    """Remembers what it is told, and sends SIGTERM when a step is reached."""

    def __init__(self, terminate_at=None):
        self.seen, self.terminate_at = [], terminate_at

    def advance(self, done, metrics):
        self.seen.append((done, dict(metrics)))
        if done == self.terminate_at:
            os.kill(os.getpid(), signal.SIGTERM)


class Compilations(stage.Silent):
    """Counts what has been compiled when it is told of a step."""

    def __init__(self):
        self.compiled, self.seen = 0, {}
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event, *_, **__):
        self.compiled += event == "/jax/core/compile/backend_compile_duration"

    def advance(self, done, metrics):
        self.seen.setdefault(done, self.compiled)

    def end(self):
        jax.monitoring.unregister_event_duration_listener(self.count)


def student(path, existing="refuse", observer=None, defense="sv", preset=small.PRESET):
    directory = RunDirectory.open(path, describe(preset, defense=defense), existing)
    return runs.make_student(
        directory, preset, small.dataset(), small.teacher(), "badnet_sq", defense, seed=5, observer=observer
    )


def lines(path):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics.read(path)]


def variables(path):
    return jax.tree.map(np.asarray, dict(checkpoint.load_network(path / "network")[0].variables))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, key_reuse):
    path, observer = tmp_path_factory.mktemp("runs") / "whole", Compilations()
    with jax.numpy_dtype_promotion("standard"):
        return path, student(path, observer=observer), observer.seen


@pytest.fixture(scope="module")
def inverted(tmp_path_factory, key_reuse):
    path, observer = tmp_path_factory.mktemp("runs") / "inverted", Compilations()
    with jax.numpy_dtype_promotion("standard"):
        return path, student(path, defense="abd", preset=small.INVERTED, observer=observer), observer.seen


def test_a_student_leaves_its_files_and_an_honest_row(whole):
    path, row, _ = whole
    for name in ("config.json", "metrics.jsonl", "result.json", "samples.npz", "vaccine.npz", "network", "best"):
        assert (path / name).exists(), name
    assert list((path / "tensorboard").iterdir())
    assert json.loads((path / "result.json").read_text()) == row
    assert set(row) == set(
        ["preset", "dataset", "method", "trigger", "seed", "role", "defense", "acc", "asr", "ra", "seconds"]
    )
    assert (row["role"], row["defense"], row["seed"], row["method"]) == ("student", "sv", 5, "zskt")
    rates, notes = evaluate.evaluate_directory(path, lambda name: small.dataset())
    assert (rates.acc, rates.asr, rates.ra) == (row["acc"], row["asr"], row["ra"])
    assert notes["defense"] == "sv"
    other, notes = evaluate.evaluate_directory(path, lambda name: small.dataset(), "blend", target=1)
    network, _ = checkpoint.load_network(path / "network")
    assert other == evaluate.evaluate(network, evaluate.TestSet.make(small.dataset(), "blend", 1))
    assert (notes["trigger"], notes["target"]) == ("blend", 1) and other.acc == row["acc"]
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(path) if "acc" in line] == [2, 4, 6]
    with np.load(path / "vaccine.npz") as vaccine:
        assert vaccine["log_kl"].shape == (int(vaccine["trials"]), 16 * small.PRESET.student.batch)
        assert vaccine["clean"].shape == (24,)


@pytest.mark.parametrize("run", ["whole", "inverted"])
def test_nothing_compiles_after_the_first_round_of_a_run(run, request):
    """Not for the first evaluation, nor for the first retrospective round either."""
    *_, compiled = request.getfixturevalue(run)
    assert compiled[1] > 5 and set(compiled) == {1, 2, 3, 4, 5, 6}
    assert set(compiled.values()) == {compiled[1]}


def test_a_terminated_run_resumes_to_bitwise_the_same(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stage.Interrupted, match=r"saved at step 3 of 6$"):
        student(tmp_path / "run", observer=Recorder(terminate_at=3))
    assert signal.getsignal(signal.SIGTERM) == before
    stored = tmp_path / "run" / metrics.METRICS_FILE
    stored.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 5000', stored.read_text()))
    row = student(tmp_path / "run", existing="resume")
    assert 5000 < row["seconds"] < 6000  # of the run, not of its tail
    assert lines(tmp_path / "run") == lines(whole[0])
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path / "run"), variables(whole[0]))
    assert {**row, "seconds": 0} == {**whole[1], "seconds": 0}


def test_a_run_stopped_after_its_last_round_is_finished_on_resume(whole, tmp_path):
    path = shutil.copytree(whole[0], tmp_path / "run")
    (path / "result.json").unlink()
    shutil.rmtree(path / "best")
    row = student(path, existing="resume")
    assert {**row, "seconds": 0} == {**whole[1], "seconds": 0}
    best, before = (checkpoint.load_network(place / "best")[0].variables for place in (path, whole[0]))
    jax.tree.map(np.testing.assert_array_equal, best, before)


def test_a_run_keeps_the_triggers_that_were_inverted(inverted):
    path, *_ = inverted
    with np.load(path / "inversion.npz") as found:
        assert found["masks"].shape == (10, 8, 8, 1) and found["patterns"].shape == (10, 8, 8, 1)
        np.testing.assert_allclose(found["sizes"], found["masks"].sum((1, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(found["anomalies"], trigger_inversion.anomalies(found["sizes"]), rtol=1e-5)
        assert found["flips"].shape == (10,) and 0 <= int(found["suspect"]) < 10
        notes = checkpoint.load_network(path / "network")[1]
        assert (notes["suspected"], notes["defended"]) == (int(found["suspect"]), True)


def test_a_terminated_run_with_an_inverted_trigger_resumes_to_bitwise_the_same(inverted, tmp_path):
    path = tmp_path / "parts"
    with pytest.raises(stage.Interrupted, match="saved at step 3"):
        student(path, defense="abd", preset=small.INVERTED, observer=Recorder(terminate_at=3))
    resumed = student(path, defense="abd", preset=small.INVERTED, existing="resume")
    assert lines(path) == lines(inverted[0])
    assert {**resumed, "seconds": 0} == {**inverted[1], "seconds": 0}


def test_a_finished_run_is_not_run_again(whole):
    observer = Recorder()
    assert student(whole[0], existing="resume", observer=observer) == whole[1]
    assert not observer.seen


def test_metrics_reach_the_observer_one_step_late(tmp_path):
    observer = Recorder()
    student(tmp_path / "run", observer=observer, defense="none", preset=small.preset(cycles=2))
    assert [done for done, _ in observer.seen] == [1, 2, 2]  # the last step's come before its checkpoint
    assert observer.seen[0][1] == {}
    assert "acc" not in observer.seen[1][1] and "acc" in observer.seen[2][1]


def diverging(directory, total=4, bad=4, every=2):
    """A stage whose state is NaN from step `bad` on."""

    def steps(first, tree):
        for done in range(first + 1, total + 1):
            tree = tree + 1 if done < bad else tree * np.nan
            yield done, tree, {"loss": tree.sum()}

    return stage.run(directory, 0.0, stage.Silent(), "", jax.numpy.zeros(3), steps, total, every)


@pytest.mark.parametrize(
    ("bad", "kept"),
    [(1, "no checkpoint precedes it"), (2, "no checkpoint precedes it"), (4, "checkpoint is of step 2")],
)
def test_a_state_that_is_not_finite_is_never_saved_nor_finished(tmp_path, bad, kept):
    """At a step between two checkpoints, at one that is saved, and at the last, which is saved too."""
    directory = RunDirectory.open(tmp_path / "run", {}, "refuse")
    for _ in range(2):  # once more: --resume
        with pytest.raises(ValueError, match=rf"step {bad}: loss is not finite; .*{kept}"):
            diverging(directory, bad=bad)


def test_a_student_that_diverges_fails_again_when_it_is_resumed(tmp_path):
    preset = small.preset(learning_rate=1e30, clip=1e30)
    for existing in ("refuse", "resume"):
        with pytest.raises(ValueError, match=r"step \d: .* is not finite; ") as caught:
            student(tmp_path / "run", defense="none", preset=preset, existing=existing)
        failed, saved = re.search(r"step (\d): .*; (?:.*of step (\d)|no checkpoint)", str(caught.value)).groups()
        assert int(failed) > int(saved or 0)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_killed_in_its_first_save_selects_and_inverts_again(inverted, tmp_path):
    path = tmp_path / "run"
    RunDirectory.open(path, describe(small.INVERTED, defense="abd"), "refuse")
    (path / "checkpoints" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    student(path, defense="abd", preset=small.INVERTED, existing="resume")
    assert lines(path) == lines(inverted[0])
    jax.tree.map(np.testing.assert_array_equal, variables(path), variables(inverted[0]))


def teacher(path, existing="refuse", observer=None):
    directory = RunDirectory.open(path, describe(small.PRESET, role="teacher"), existing)
    return runs.train_teacher(directory, small.PRESET, small.dataset(), "badnet_sq", 1, observer)


def test_a_teacher_resumes_to_bitwise_the_same(tmp_path):
    row = teacher(tmp_path / "whole")
    with pytest.raises(stage.Interrupted):
        teacher(tmp_path / "run", observer=Recorder(terminate_at=1))
    again = teacher(tmp_path / "run", existing="resume")
    assert {**row, "seconds": 0} == {**again, "seconds": 0}
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path / "run"), variables(tmp_path / "whole"))
    notes = checkpoint.load_network(tmp_path / "run" / "network")[1]
    assert len(notes["poisoned"]) == round(0.1 * 48)
    with np.load(tmp_path / "run" / "examples.npz") as examples:
        assert examples["clean"].shape == examples["triggered"].shape
        assert (examples["labels"] != 0).all() and (examples["clean"] != examples["triggered"]).any()


def test_a_nasty_teacher_has_a_normal_network_beside_it_and_resumes_to_bitwise_the_same(tmp_path):
    def nasty(path, existing="refuse", observer=None):
        directory = RunDirectory.open(path, describe(small.PRESET, role="teacher"), existing)
        return runs.train_teacher(directory, small.PRESET, small.dataset(), "nasty", 1, observer)

    row = nasty(tmp_path / "whole")
    with pytest.raises(stage.Interrupted, match="normal: saved at step 1"):
        nasty(tmp_path / "run", observer=Recorder(terminate_at=1))
    assert {**nasty(tmp_path / "run", existing="resume"), "seconds": 0} == {**row, "seconds": 0}
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path / "run"), variables(tmp_path / "whole"))
    assert len(lines(tmp_path / "run" / "normal")) == small.PRESET.teacher.epochs
    notes = checkpoint.load_network(tmp_path / "run" / "network")[1]
    assert notes["poisoned"] == [] and notes["acc"] == row["acc"] and notes["classes"] == list("0123456789")
    rates, _ = evaluate.evaluate_directory(tmp_path / "run", lambda name: small.dataset())
    assert (rates.acc, rates.asr, rates.ra) == (row["acc"], row["asr"], row["ra"])


def test_clean_kd_learns_from_a_share_of_the_clean_data(tmp_path):
    row = student(tmp_path / "run", defense="clean_kd")
    assert (row["role"], row["defense"]) == ("student", "clean_kd")
    assert len(lines(tmp_path / "run")) == small.PRESET.clean_kd.epochs


@pytest.mark.parametrize(
    ("prepare", "existing", "message"),
    [
        (lambda p: None, "refuse", "use --resume to go on or --overwrite"),
        (lambda p: (p / "config.json").rename(p / "thesis.tex"), "overwrite", "no run of ours"),
        (lambda p: (p / "config.json").write_text("{"), "resume", "damaged"),
        (lambda p: None, "resume", "started with defense = 'sv', now 'none'"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_clear_error(tmp_path, prepare, existing, message):
    RunDirectory.open(tmp_path / "run", describe(small.PRESET, defense="sv"), "refuse")
    prepare(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        RunDirectory.open(tmp_path / "run", describe(small.PRESET, defense="none"), existing)


def test_a_run_goes_on_with_a_teacher_that_was_moved_and_with_no_other(tmp_path):
    def opened(path, digest, existing="resume"):
        RunDirectory.open(tmp_path / "run", describe(small.PRESET, teacher={"path": path, "digest": digest}), existing)

    opened("/old/teacher", "d1", "refuse")
    opened("/new/teacher", "d1")
    with pytest.raises(ValueError, match=r"started with teacher\.digest = 'd1', now 'd2'"):
        opened("/old/teacher", "d2")


def test_the_names_of_the_classes_reach_a_method_without_a_data_set(tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def init(run, root, teacher):
        raise Reached(run.synthesizer.task.classes)

    monkeypatch.setattr(Distillation, "init", init)
    preset = dataclasses.replace(small.PRESET, method="nayer", synthesis=NAYERConfig(embedding="text"))
    directory, names = RunDirectory.open(tmp_path / "run", describe(preset), "refuse"), tuple("0123456789")
    with pytest.raises(Reached) as reached:
        runs.make_student(directory, preset, None, small.teacher(), None, "none", seed=5, classes=names)
    assert reached.value.args == (names,)
    with pytest.raises(ValueError, match="no class names"):
        runs.make_student(directory, preset, None, small.teacher(), None, "none", seed=5)


def test_overwrite_starts_again(tmp_path):
    opened = RunDirectory.open(tmp_path / "run", describe(small.PRESET), "refuse")
    opened.finish({"acc": 1})
    assert RunDirectory.open(tmp_path / "run", describe(small.PRESET), "overwrite").result is None


def test_a_bank_of_images_is_shown_and_every_image_is_kept_if_told(tmp_path):
    bank = BankConfig(capacity=8, crop=0, flip=False, spill=True)
    settings = DeepInversionConfig(updates=1, batch=8, bank=bank)
    preset = dataclasses.replace(small.preset(cycles=3, updates=1), method="deep_inversion", synthesis=settings)
    student(tmp_path / "run", defense="none", preset=preset)
    files = sorted((tmp_path / "run" / "bank").iterdir())
    assert [file.name for file in files] == ["000001.npz", "000002.npz", "000003.npz"]
    kept = [np.load(file)["images"] for file in files]
    assert len({images.tobytes() for images in kept}) == 3, "though the bank holds one batch alone"
    with Image.open(tmp_path / "run" / "bank.png") as grid:
        shown = np.asarray(grid)
    newest_first = kept[-1][::-1, ..., 0].swapaxes(0, 1).reshape(8, 64)
    np.testing.assert_array_equal(shown, np.pad(newest_first, ((0, 0), (0, 64))))


def test_before_the_first_round_a_defense_sees_images_of_a_generator_whatever_the_method():
    """Neighboring pixels of a generator's image are alike; those of an empty bank are not."""
    teacher = network(classes=10, shape=(10, 10, 1))
    preset = dataclasses.replace(
        small.PRESET,
        method="deep_inversion",
        synthesis=DeepInversionConfig(batch=8, bank=BankConfig(capacity=64, crop=0, flip=False)),
    )
    run = Distillation.make(preset, "none", teacher)
    images = np.asarray(evidence.generic_images(run, small.key(), None)(small.key(1), count=64))
    assert images.shape == (64, 10, 10, 1)
    noise = np.asarray(run.synthesizer.sample(small.key(1), run.synthesizer.init(small.key()), 64))
    alike, unlike = (np.corrcoef(x[:, :, 1:].ravel(), x[:, :, :-1].ravel())[0, 1] for x in (images, noise))
    assert alike > 0.5 > 0.2 > abs(unlike), (alike, unlike)

    run = Distillation.make(small.PRESET, "none", small.teacher())
    state = run.synthesizer.init(small.key())
    own = run.synthesizer.sample(small.key(1), state, 4)
    np.testing.assert_allclose(
        evidence.generic_images(run, small.key(), state)(small.key(1), count=4), own, rtol=1e-5, atol=1e-6
    )


def test_no_image_is_kept_on_the_host_unless_told(tmp_path):
    preset = small.PRESET.with_method("deep_inversion")
    for unasked in (small.PRESET, preset):
        evidence.spill(RunDirectory(tmp_path), unasked, 1, synthesizer=None)
    assert not list(tmp_path.iterdir())


def test_a_student_of_a_teacher_without_data_is_the_same_student_without_rates(whole, tmp_path):
    directory = RunDirectory.open(tmp_path / "run", describe(small.PRESET, defense="sv"), "refuse")
    row = runs.make_student(directory, small.PRESET, None, small.teacher(), None, "sv", seed=5)
    assert (row["acc"], row["asr"], row["ra"], row["trigger"], row["dataset"]) == (None,) * 5
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path / "run"), variables(whole[0]))
    assert not (tmp_path / "run" / "best").exists()
    with np.load(tmp_path / "run" / "vaccine.npz") as stored:
        assert "synthetic" in stored and "clean" not in stored and "triggered" not in stored
    with pytest.raises(ValueError, match="does not tell dataset, trigger, target"):
        evaluate.evaluate_directory(tmp_path / "run", lambda name: small.dataset())
    rates, notes = evaluate.evaluate_directory(
        tmp_path / "run", lambda name: small.dataset(), "badnet_sq", small.PRESET.teacher.target, "digits"
    )
    assert rates == tuple(whole[1][name] for name in rates._fields) and notes["dataset"] == "digits"
