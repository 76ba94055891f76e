"""Metrics of a run: `metrics.jsonl` and TensorBoard events, written one step late so that nothing waits."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array
from tensorboardX import SummaryWriter

from abd_jax.training import processes
from abd_jax.writing import write_whole

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(ValueError):
    """A metric is NaN or infinite."""


class MetricsWriter:
    """Writes the metrics of step k − 1 when those of step k have been dispatched.

    Args:
        directory: of the run.
        started: when the run began, as `began` tells; a line's `seconds` are counted from then.
        first_step: lines of this step and later ones are dropped from an existing file, as the run repeats them.
    """

    def __init__(self, directory: Path, started: float, first_step: int = 0) -> None:
        directory = processes.own_directory(directory)
        path = directory / METRICS_FILE
        self._started = started
        kept = [line for line in read(directory) if line["step"] < first_step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)
        self._pending: tuple[int, Mapping[str, Array]] | None = None

    def write(self, step: int, metrics: Mapping[str, Array]) -> dict[str, float] | None:
        """Takes this step's metrics; returns the written ones of the step before, or None at the first."""
        before, self._pending = self._pending, (step, metrics)
        return self._emit(*before) if before else None

    def flush(self) -> dict[str, float] | None:
        """Writes what is pending and returns it; waits for the device."""
        before, self._pending = self._pending, None
        return self._emit(*before) if before else None

    def abandon(self) -> None:
        """Forgets what is pending: after a value that is not finite, the next one is not worth a second error."""
        self._pending = None

    def close(self) -> dict[str, float] | None:
        """Writes what is pending and closes the files."""
        try:
            return self.flush()
        finally:
            self._file.close()
            self._events.close()

    def _emit(self, step: int, metrics: Mapping[str, Array]) -> dict[str, float]:
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        bad = sorted(name for name, value in values.items() if not math.isfinite(value))
        if bad:
            raise NonFiniteError(f"step {step}: {', '.join(bad)} is not finite")
        line: dict[str, Any] = {"step": step, "seconds": round(time.perf_counter() - self._started, 3)}
        self._file.write(json.dumps(line | values) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        return values


def read(directory: Path) -> list[dict[str, float]]:
    """All whole lines of a run's metrics; one that a crash cut short can only be the last."""
    path = directory / METRICS_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return [json.loads(line) for line in lines[:-1]]


def began(*directories: Path) -> float:
    """When a stage would have begun, had it never been interrupted, on the clock of `time.perf_counter`.

    Args:
        directories: of the stage's metrics, and of those of the part before; none need exist.
    """
    spent = (lines[-1]["seconds"] for directory in directories if (lines := read(directory)))
    return time.perf_counter() - max(spent, default=0.0)
