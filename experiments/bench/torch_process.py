"""PyTorch in a process of its own: two frameworks' thread pools in one process slow each other down."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from experiments.bench.timing import elapsed


def available() -> bool:
    return importlib.util.find_spec("torch") is not None


def _serve(connection: Connection, depth: int, width: int, batch: int, side: int) -> None:
    from experiments.bench.torch_networks import training_step

    step = elapsed(training_step(depth, width, batch, side))
    while connection.recv():
        connection.send(step())


@contextlib.contextmanager
def torch_step(depth: int, width: int, batch: int, side: int) -> Iterator[Callable[[], float]]:
    """A function that makes one eager training step in another process and returns its seconds, as measured there."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, depth, width, batch, side), daemon=True)
    process.start()
    theirs.close()

    def step() -> float:
        ours.send(True)
        return ours.recv()

    try:
        yield step
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(False)
        process.join()
