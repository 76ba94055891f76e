"""What every stage goes through: steps with checkpoints, metrics and an observer; and the row and notes it leaves."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from abd_jax.training import config as configs
from abd_jax.training import evaluate as evaluation
from abd_jax.training import processes
from abd_jax.training.checkpoint import Checkpoints
from abd_jax.training.metrics import MetricsWriter, NonFiniteError
from abd_jax.training.run_directory import RunDirectory

Row = dict[str, Any]


class Interrupted(Exception):
    """SIGTERM came; the state was saved."""


@runtime_checkable
class Observer(Protocol):
    """Who is told how far a stage is; called once a step with the metrics of the step before, if there are any."""

    def begin(self, title: str, total: int, done: int) -> None: ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def end(self) -> None: ...


class Silent:
    """The observer that shows nothing."""

    def begin(self, title: str, total: int, done: int) -> None: ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def end(self) -> None: ...


_told: threading.Event | None = None
"""Set when SIGTERM comes; there is one as long as the main thread listens for it."""


@contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM has come.

    The main thread alone can listen for it: another thread hears what the main thread hears, if that began to listen
    before. All processes of a run must call it equally often.
    """
    global _told
    if processes.several():
        yield processes.preempted
        return
    if threading.current_thread() is not threading.main_thread():
        yield (_told or threading.Event()).is_set
        return
    arrived = _told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
        _told = None


def run(
    directory: RunDirectory,
    started: float,
    observer: Observer,
    title: str,
    tree: Any,
    steps: Callable[[int, Any], Iterator[tuple[int, Any, Mapping[str, Array]]]],
    total: int,
    checkpoint_every: int,
    prepare: Callable[[Any], Any] = lambda tree: tree,
) -> Any:
    """Runs a stage's steps with checkpoints, metrics, progress and termination; returns the final tree.

    A step's metrics are read before its state is saved, so that no checkpoint follows a loss that is not finite.

    Args:
        started: when the stage began, see `metrics.began`.
        tree: the initial state; replaced by the newest whole checkpoint's if there is one.
        steps: (first step, tree) → (finished steps, tree, metrics) after each step.
        total: number of steps.
        checkpoint_every: steps between two checkpoints.
        prepare: completes the initial state where there is no checkpoint.

    Raises:
        Interrupted: SIGTERM came.
        ValueError: a metric was not finite.
    """
    with closing(Checkpoints(directory.path / "checkpoints")) as checkpoints:
        first, tree = checkpoints.load(tree) or (0, prepare(tree))
        with termination() as terminated:
            last_saved = first
            observer.begin(title, total, first)
            writer = MetricsWriter(directory.path, started, first_step=first + 1)
            try:
                for done, latest, metrics in steps(first, tree):
                    tree = latest
                    observer.advance(done, writer.write(done, metrics) or {})
                    stopping = terminated()
                    if done % checkpoint_every == 0 or done == total or stopping:
                        observer.advance(done, writer.flush() or {})
                        checkpoints.save(done, tree)
                        last_saved = done
                    if stopping and done < total:
                        raise Interrupted(f"{directory.path}: saved at step {done} of {total}")
            except NonFiniteError as error:
                writer.abandon()
                last = (
                    f"the last good checkpoint is of step {last_saved}" if last_saved else "no checkpoint precedes it"
                )
                raise ValueError(f"{directory.path}: {error}; {last}") from error
            finally:
                writer.close()
                observer.end()
    return tree


def row(
    preset: configs.Preset,
    trigger: str | None,
    seed: int,
    role: str,
    defense: str,
    started: float,
    rates: evaluation.Rates | None,
) -> Row:
    return {
        "preset": preset.name,
        "dataset": None if trigger is None else preset.dataset,
        "method": preset.method,
        "trigger": trigger,
        "seed": seed,
        "role": role,
        "defense": defense,
        **(rates._asdict() if rates else dict.fromkeys(evaluation.Rates._fields)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def warning(notes: Mapping[str, Any]) -> str:
    """One line if a student's notes tell that its defense came to nothing, else an empty one."""
    if notes.get("defended", True):
        return ""
    reasons = []
    if "suspected" in notes:
        reasons.append("no class of the teacher is suspected of a backdoor")
    if not notes.get("vaccine_enabled", True):
        reasons.append("no draw of the shuffled teachers was accepted")
    why = " and ".join(reasons) or "with these settings no part of it reaches the student"
    return f"defense {notes['defense']}: {why}; this student is in effect an undefended one"


def notes(
    preset: configs.Preset, trigger: str | None, seed: int, role: str, defense: str, **more: Any
) -> dict[str, Any]:
    return {
        "role": role,
        "dataset": None if trigger is None else preset.dataset,
        "trigger": trigger,
        "target": None if trigger is None else preset.teacher.target,
        "seed": seed,
        "defense": defense,
        **more,
    }
