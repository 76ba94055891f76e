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

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(ValueError):
    """A metric is NaN or infinite."""


class MetricsWriter:
    """Writes the metrics of step k − 1 when those of step k have been dispatched.

    Args:
        directory: of the run.
        first_step: lines of this step and later ones are dropped from an existing file, as the run repeats them.
    """

    def __init__(self, directory: Path, first_step: int = 0) -> None:
        path = directory / METRICS_FILE
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) < first_step]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)
        self._start = time.perf_counter() - (json.loads(kept[-1])["seconds"] if kept else 0.0)
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
        line: dict[str, Any] = {"step": step, "seconds": round(time.perf_counter() - self._start, 3)}
        self._file.write(json.dumps(line | values) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        return values


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a crash counts as infinitely late."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def read(directory: Path) -> list[dict[str, float]]:
    """All lines of a run's metrics."""
    path = directory / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
