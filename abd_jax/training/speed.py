"""How fast a run is: images and cycles in a second, arithmetic in a second, and its share of what the device can do."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from abd_jax.training.run_directory import write_json

SPEED_FILE = "speed.json"
PEAKS = {
    # https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e; NVIDIA's data sheets, dense
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""A device's kind as JAX names it → bfloat16 operations in a second, dense."""
PROFILED = 3
"""Rounds in a trace."""


def flops(program: ClosedJaxpr | Jaxpr) -> float:
    """Floating point operations of a traced program's products and convolutions; the rest is little beside them.

    A loop's body counts as often as it runs (once where that is not known); of branches, the costliest counts.
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    total = 0.0
    for equation in jaxpr.eqns:
        parameters, name = equation.params, equation.primitive.name
        inputs: list[Any] = [variable.aval for variable in equation.invars]
        outputs: list[Any] = [variable.aval for variable in equation.outvars]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            sides = math.prod(inputs[0].shape[axis] for axis in contracted)
            total += 2 * sides * outputs[0].size
        elif name == "conv_general_dilated":
            kernel, numbers = inputs[1], parameters["dimension_numbers"]
            features = kernel.shape[numbers.rhs_spec[0]]
            total += 2 * outputs[0].size * kernel.size / features / parameters["batch_group_count"]
        elif name == "cond":
            total += max(map(flops, parameters["branches"]))
        else:
            inner = sum(flops(value) for value in parameters.values() if isinstance(value, ClosedJaxpr | Jaxpr))
            total += inner * parameters.get("length", 1)
    return total


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of the rounds of one process's life, evaluations and checkpoints between them included.

    Attributes:
        cycles_per_second: rounds.
        images_per_second: images in the student's updates.
        flops_per_second: of products and convolutions, over all devices.
        peak_share: of what the devices can do at best in bfloat16; None where that is not known, as for a CPU.
        devices: kind and number.
    """

    cycles_per_second: float
    images_per_second: float
    flops_per_second: float
    peak_share: float | None
    devices: str

    @classmethod
    def of(cls, cycles: int, seconds: float, images: int, operations: float, count: int) -> Speed:
        """From totals: rounds, seconds, images and operations, on `count` devices."""
        kind = jax.devices()[0].device_kind
        peak = PEAKS.get(kind)
        share = None if peak is None else operations / seconds / (peak * count)
        return cls(cycles / seconds, images / seconds, operations / seconds, share, f"{count} × {kind}")

    def __str__(self) -> str:
        share = "" if self.peak_share is None else f", {self.peak_share:.1%} of the peak"
        return (
            f"{self.images_per_second:.0f} images/s, {self.cycles_per_second:.2f} cycles/s, "
            f"{self.flops_per_second / 1e9:.1f} Gflop/s{share} on {self.devices}"
        )


class Clock:
    """Counts what rounds do, from its making on."""

    def __init__(self, devices: int) -> None:
        self._began, self._cycles, self._images, self._operations = time.perf_counter(), 0, 0, 0.0
        self._devices = devices

    def count(self, images: int, operations: float) -> None:
        """One round more."""
        self._cycles += 1
        self._images += images
        self._operations += operations

    def write(self, directory: Path, last: Any) -> None:
        """Waits for the last round's state and writes `speed.json`; nothing, if there was no round."""
        jax.block_until_ready(last)
        if self._cycles:
            seconds = time.perf_counter() - self._began
            speed = Speed.of(self._cycles, seconds, self._images, self._operations, self._devices)
            write_json(directory / SPEED_FILE, dataclasses.asdict(speed))


def read(directory: Path) -> Speed | None:
    """What `Clock.write` left, if it did."""
    path = directory / SPEED_FILE
    return Speed(**json.loads(path.read_text())) if path.is_file() else None


class Trace:
    """An XProf trace of `PROFILED` rounds, the second of the run and those after it, as TensorBoard reads it."""

    def __init__(self, directory: Path | None) -> None:
        self._directory, self._rounds = directory, 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[Trace]:
        """Ends the trace, if it is under way, whatever ends the rounds."""
        try:
            yield self
        finally:
            if self._rounds > 1 and self._directory is not None:
                self._stop()

    def round(self, state: Any) -> None:
        """To be called before each round with the state that it starts from."""
        if self._directory is None:
            return
        self._rounds += 1
        if self._rounds == 2:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory))
        elif self._rounds == PROFILED + 2:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._directory = None
