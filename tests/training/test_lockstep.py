"""Runs in lockstep: each gets what it would get alone, whoever leaves, fails or lags behind."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import pytest

from abd_jax.training import dispatch, lockstep, matrix, stage
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


def member(seed, preset=small.PRESET, defense="none"):
    """A run of its own: what `compile_rounds` is given."""
    key, teacher = jax.random.key(seed), network(seed=seed, classes=10)
    run = Distillation.make(preset, defense, teacher)
    state = jax.device_put(run.init(key, teacher), jax.local_devices()[0])
    return run, key, state, teacher


def go(compile_rounds, times, run, key, state, teacher):
    rounds = compile_rounds(run, key, jax.tree.map(lambda leaf: leaf.copy(), state), teacher)
    history = []
    for step in range(times):
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
    "preset, defense",
    [
        (small.PRESET, "none"),
        (small.INVERTED, "abd"),
        pytest.param(small.PRESET, "abd", marks=pytest.mark.slow),
    ],
)
def test_each_gets_what_it_would_get_alone(preset, defense):
    """Whether it stays as long as the others or not, and in both kinds of round."""
    times = [2, 4] if defense == "none" else [4, 4]
    found = all_of(Lockstep(2), [member(seed, preset, defense) for seed in (0, 1)], times)
    for seed, done, (variables, history) in zip((0, 1), times, found, strict=True):
        expected, metrics = go(dispatch.compile_rounds, done, *member(seed, preset, defense))
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


def test_a_program_that_fails_fails_for_all_and_blocks_none(monkeypatch):
    meeting = Lockstep(2)

    def failing(*_):
        raise RuntimeError("out of memory")

    def one(given):
        run, key, state, teacher = given
        with meeting.member():
            rounds = meeting.compile_rounds(run, key, state, teacher)
            meeting._programs = {kind: (failing, 0.0) for kind in meeting._programs}
            with pytest.raises(RuntimeError, match="out of memory"):
                rounds[run.phase(0)](key, state, teacher)
            return True

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(one, [member(0), member(1)])) == [True, True]


@pytest.fixture
def students(tmp_path, monkeypatch):
    """Two cells with their teachers, of the same method and defense."""
    monkeypatch.setattr(matrix, "_dataset", lambda name: small.dataset())
    top = tmp_path / "m"
    top.mkdir()
    _, cells = matrix.cells(top, (small.preset(cycles=2),), ("badnet_sq",), ("none",), (0, 1))
    for cell in cells:
        teacher = network(seed=cell.seed, classes=10)
        matrix.checkpoint.save_network(cell.teacher.path / "network", teacher, "wrn-10-1", {})
    return tuple(cells)


def test_a_lot_is_trained_together_each_in_its_directory(students):
    assert matrix.lots(students, 2) == [students] and matrix.lots(students, 1) == [students[:1], students[1:]]
    outcomes = matrix.together(students)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.row["seed"] for outcome in outcomes] == [0, 1]
    assert all(cell.done and "0 of 2 steps are done" in cell.log.read_text() for cell in students)


def test_one_that_breaks_does_not_hold_the_others_up(students, monkeypatch):
    make = matrix.runs.make_student

    def broken(directory, *arguments, **options):
        if "seed1" in str(directory.path):
            raise RuntimeError("a bad day")
        return make(directory, *arguments, **options)

    monkeypatch.setattr(matrix.runs, "make_student", broken)
    well, ill = matrix.together(students)
    assert well.row and ill.error == "RuntimeError: a bad day" and "a bad day" in students[1].log.read_text()


def test_sigterm_saves_all_and_they_go_on(students, monkeypatch):
    class Killed(matrix._Lines):
        def advance(self, done, metrics):
            if done == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                with stage.termination() as arrived:
                    while not arrived():  # the main thread hears of it a little later
                        time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(matrix, "_Lines", Killed)
        before = signal.getsignal(signal.SIGTERM)
        assert matrix.together(students) == (matrix.Outcome(), matrix.Outcome())
        assert signal.getsignal(signal.SIGTERM) is before
    assert all("saved at step 1 of 2" in cell.log.read_text() for cell in students)
    assert all(outcome.row for outcome in matrix.together(students))
