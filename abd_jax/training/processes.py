"""Several processes as one run, each with some of the mesh's devices: who writes, and how all learn what one knows.

Every process runs the same program. Process 0 alone writes the run's directory, which must lie on a file system that
all share: the others read it, and take part in Orbax's saves.
"""

from __future__ import annotations

import atexit
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_steps = itertools.count()
Tree = TypeVar("Tree")


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Makes this process one of several; must come before anything asks for a device.

    Args:
        coordinator: `HOST:PORT` of process 0; or `auto`, where JAX knows all three by itself: on Cloud TPU, SLURM, MPI.
        processes: how many there are.
        process: which of them this is, from 0.

    Raises:
        ValueError: they are not given together, or are no such numbers, or the others do not come.
    """
    options: dict[str, Any] = {}
    if coordinator != AUTO:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"--coordinator {coordinator}: allowed are HOST:PORT of process 0, and {AUTO}")
        if processes is None or process is None:
            raise ValueError(f"--coordinator {coordinator}: needs --processes and --process-id")
        if not 0 <= process < processes:
            raise ValueError(f"--process-id {process}: allowed are 0 … {processes - 1} of --processes {processes}")
        options = {"coordinator_address": coordinator, "num_processes": processes, "process_id": process}
    elif processes is not None or process is not None:
        raise ValueError(f"--coordinator {AUTO}: finds --processes and --process-id by itself")
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        where = " (auto works where JAX knows the cluster; else name HOST:PORT)" if coordinator == AUTO else ""
        raise ValueError(f"--coordinator {coordinator}: {error}{where}") from error


def several() -> bool:
    return jax.process_count() > 1


def primary() -> bool:
    """Whether this process writes and speaks for all."""
    return jax.process_index() == 0


def over(devices: int) -> int:
    """How many devices a batch is split over: as asked, but all there are if several processes share the run.

    Raises:
        ValueError: several processes, and another number was asked for.
    """
    if not several():
        return devices
    if devices not in (0, jax.device_count()):
        raise ValueError(f"--devices {devices}: {jax.process_count()} processes use all {jax.device_count()} devices")
    return jax.device_count()


def agreed(tell: Callable[[], Any]) -> Any:
    """What `tell` returns in process 0, in all of them; it must be JSON-able.

    Raises:
        ValueError: where it did so in process 0, in all of them.
    """
    if not several():
        return tell()
    said: dict[str, Any] = {}
    if primary():
        try:
            said = {"value": tell()}
        except (ValueError, OSError) as error:
            said = {"error": str(error)}
    text = np.frombuffer(json.dumps(said).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(text.size)))
    text = multihost_utils.broadcast_one_to_all(np.resize(text, size))
    said = json.loads(np.asarray(text).astype(np.uint8).tobytes())
    if "error" in said:
        raise ValueError(said["error"])
    return said["value"]


def saved_as(leaf: Any) -> Any:
    """What Orbax saves for an array: of several processes, NumPy's form of one that this one holds all of."""
    return np.asarray(leaf) if several() and isinstance(leaf, jax.Array) and leaf.is_fully_addressable else leaf


def local(tree: Tree) -> Tree:
    """What this process's first device holds of every array: of a replicated one, all of it."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def meet(where: str) -> None:
    """Waits for all processes."""
    if several():
        multihost_utils.sync_global_devices(where)


def preempted() -> bool:
    """Whether SIGTERM has come to any of several processes: JAX lets all of them know at the same call of this."""
    return multihost_utils.reached_preemption_sync_point(next(_steps))


def own_directory(path: Path) -> Path:
    """Where this process writes streams that belong into `path`: there, or in a place that goes when it does."""
    if primary():
        return path
    place = Path(tempfile.mkdtemp(prefix=f"abd_jax-process{jax.process_index()}-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place
