"""Runs in lockstep: each gets what it would get alone, whoever leaves, fails or lags behind."""

import contextlib
import dataclasses
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import pytest

from abd_jax.training import cells, dispatch, lockstep, matrix, stage
from abd_jax.training.distill import Distillation
from abd_jax.training.lockstep import Lockstep
from tests.networks import network
from tests.training import small

pytestmark = pytest.mark.optax


@pytest.fixture(autouse=True)
def promotion_in_threads():
    """What the mark sets, for threads too: they begin with what holds globally."""
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


def member(seed, preset=small.PRESET, defense="none", first=0):
    """A run of its own that goes on from a step: what `compile_rounds` is given."""
    key, teacher = jax.random.key(seed), network(seed=seed, classes=10)
    run = Distillation.make(preset, defense, teacher)
    state = dataclasses.replace(run.init(key, teacher), step=jnp.int32(first))
    return run, key, jax.device_put(state, jax.local_devices()[0]), teacher


def go(compile_rounds, times, run, key, state, teacher):
    rounds = compile_rounds(run, key, jax.tree.map(lambda leaf: leaf.copy(), state), teacher)
    history, first = [], int(state.step)
    for step in range(first, first + times):
        state, metrics = rounds[run.phase(step)](key, state, teacher)
        history.append(jax.device_get(metrics))
    return jax.device_get(state.student.variables), history


def all_of(meeting, runs, times):
    def one(given, times):
        with meeting.member():
            return go(meeting.compile_rounds, times, *given)

    with ThreadPoolExecutor(len(runs)) as threads:
        return list(threads.map(one, runs, times))


@pytest.mark.parametrize(
    "preset, defense, first, times",
    [
        (small.PRESET, "none", (0, 0), (2, 4)),
        (small.INVERTED, "abd", (0, 3), (4, 2)),
        pytest.param(small.PRESET, "abd", (0, 0), (4, 4), marks=pytest.mark.slow),
    ],
)
def test_each_gets_what_it_would_get_alone(preset, defense, first, times):
    """Whether it stays as long as the other or not, and whether the other is in the same kind of round or not."""
    found = all_of(Lockstep(2), [member(seed, preset, defense, first[seed]) for seed in (0, 1)], times)
    for seed, (variables, history) in enumerate(found):
        expected, metrics = go(dispatch.compile_rounds, times[seed], *member(seed, preset, defense, first[seed]))
        chex.assert_trees_all_close(history, metrics, rtol=2e-3, atol=1e-4)
        chex.assert_trees_all_close(variables, expected, rtol=2e-3, atol=1e-3)


def test_one_program_serves_all_and_those_that_are_left(monkeypatch):
    meeting, traced = Lockstep(2), []
    trace = lockstep.whole_rounds.trace

    class Counting:
        def trace(self, *arguments):
            traced.append(arguments[:2])
            return trace(*arguments)

    monkeypatch.setattr(lockstep, "whole_rounds", Counting())
    all_of(meeting, [member(0), member(1)], [1, 2])
    assert len(traced) == 1


@pytest.mark.parametrize("broken", ["program", "copy"])
def test_what_fails_fails_for_all_and_blocks_none(broken, monkeypatch):
    """The program of all, and the copy that fills the place of one that has left: the first of three leaves at once."""

    def failing(*_):
        raise MemoryError("out of memory")

    meeting = Lockstep(3)
    if broken == "copy":
        monkeypatch.setattr(lockstep._Call, "copy", failing)

    def one(given):
        index, (run, key, state, teacher) = given
        with meeting.member():
            rounds = meeting.compile_rounds(run, key, state, teacher)
            if broken == "program":
                meeting._programs = {kind: (failing, 0.0) for kind in meeting._programs}
            elif index == 0:
                return True
            with pytest.raises(RuntimeError, match="MemoryError: out of memory"):
                rounds[run.phase(0)](key, state, teacher)
            return True

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(one, enumerate(map(member, range(3))), timeout=120))


@pytest.fixture
def students(tmp_path, monkeypatch):
    """Two cells with their teachers, of the same method and defense."""
    monkeypatch.setattr(cells, "load_dataset", lambda name: small.dataset())
    top = tmp_path / "m"
    top.mkdir()
    _, made = matrix.cells(top, (small.preset(cycles=2),), ("badnet_sq",), ("none",), (0, 1))
    for cell in made:
        teacher = network(seed=cell.seed, classes=10)
        cells.checkpoint.save_network(cell.teacher.path / "network", teacher, "wrn-10-1", {})
    return tuple(made)


def test_a_lot_is_trained_together_each_in_its_directory(students):
    assert cells.lots(students, 2) == [students] and cells.lots(students, 1) == [students[:1], students[1:]]
    assert list(map(len, cells.lots(students * 5, 4))) == [3, 3, 4]
    outcomes = cells.together(students)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.row["seed"] for outcome in outcomes] == [0, 1]
    assert all(cell.done and "0 of 2 steps are done" in cell.log.read_text() for cell in students)


def test_one_that_breaks_does_not_hold_the_others_up(students, monkeypatch):
    make = cells.runs.make_student

    def broken(directory, *arguments, **options):
        if "seed1" in str(directory.path):
            raise RuntimeError("a bad day")
        return make(directory, *arguments, **options)

    monkeypatch.setattr(cells.runs, "make_student", broken)
    well, ill = cells.together(students)
    assert well.row and ill.error == "RuntimeError: a bad day" and "a bad day" in students[1].log.read_text()


@pytest.mark.parametrize("how", [cells.together, cells.attempt])
def test_sigterm_saves_what_is_under_way_and_all_go_on(how, students, monkeypatch):
    """In lockstep, and one after the other as on CPU, where the second is not begun any more."""

    class Killed(cells._Lines):
        def advance(self, done, metrics):
            if done == 1:
                with stage.termination() if how is cells.together else contextlib.nullcontext() as arrived:
                    os.kill(os.getpid(), signal.SIGTERM)
                    while arrived is not None and not arrived():  # the main thread hears of it a little later
                        time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(cells, "_Lines", Killed)
        before = signal.getsignal(signal.SIGTERM)
        assert how(students) == (cells.Outcome(), cells.Outcome())
        assert signal.getsignal(signal.SIGTERM) is before
    saved = ["saved at step 1 of 2" in cell.log.read_text() for cell in students if cell.log.is_file()]
    assert saved == [True, how is cells.together]
    with ThreadPoolExecutor(1) as thread:  # nor does a later run in another thread hear of it
        assert all(outcome.row for outcome in thread.submit(how, students).result())
