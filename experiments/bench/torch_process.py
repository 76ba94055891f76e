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


def _serve(connection: Connection, name: str, arguments: tuple[str | int, ...]) -> None:
    from experiments.bench import torch_steps

    step = elapsed(getattr(torch_steps, name)(*arguments))
    while connection.recv():
        connection.send(step())


@contextlib.contextmanager
def torch_step(name: str, *arguments: str | int) -> Iterator[Callable[[], float]]:
    """A function that makes one eager step in another process and returns its seconds, as measured there.

    Args:
        name: of the function in `torch_steps` that makes the step.
        arguments: that function's.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, name, arguments), daemon=True)
    process.start()
    theirs.close()

    def step() -> float:
        try:
            ours.send(True)
            return ours.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise ValueError(f"PyTorch's process ended with exit code {process.exitcode}, in {name}") from None

    try:
        yield step
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(False)
        process.join()
