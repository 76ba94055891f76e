"""Where the cells of a matrix run: worker processes of this machine, Ray, or Slurm (by submitit).

An executor is a function `(work, items) → iterator of (item, result)`, in the order in which they end. A worker lives
on from item to item, so that what JAX compiled for one is there for the next. What `work` raises is its own affair;
a worker that dies (killed, out of memory, a lost machine) has its item tried again by another, `retries` times, and
then given up as `Died`. Items, results and `work` must be picklable; `work` is a function of a module.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

Execute = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[Any, Any]]]
Results = Iterator[tuple[Any, Any]]
_PATIENCE = 300.0  # seconds that a worker has to save


@dataclasses.dataclass(frozen=True)
class Died:
    """The result of an item whose workers died, each time that it was tried."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class Terminated(Exception):
    """SIGTERM came; the workers were told to save and have stopped."""


def require(module: str, executor: str) -> ModuleType:
    """The package that an executor needs, which is an extra of its name.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"--executor {executor}: needs {module}: pip install 'abd-jax[{executor}]'") from None


# --- this machine


def _shares(workers: int) -> list[set[int]]:
    """This process's cores dealt out to so many workers; empty sets, which are no bound, if they do not go round."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [set(cores[worker::workers]) if len(cores) >= workers else set() for worker in range(workers)]


def _serve(pipe: Connection, work: Callable[[Any], Any], cores: set[int]) -> None:
    """A worker's life: items in, results out, until the pipe closes. Ctrl-C is the parent's to handle."""
    if cores:
        os.sched_setaffinity(0, cores)  # before JAX counts them: two workers' threads would wait for each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send(work(pipe.recv()))


class _Worker:
    def __init__(self, work: Callable[[Any], Any], cores: set[int]) -> None:
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork
        self.cores, (self.pipe, theirs) = cores, context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, cores), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self, patience: float) -> None:
        """Waits until it has seen that its pipe is closed; then SIGKILL."""
        self.pipe.close()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclasses.dataclass(frozen=True)
class Local:
    """Worker processes of this machine, each on its share of the cores."""

    workers: int = 1
    retries: int = 1

    def __call__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Results:
        waiting = deque((item, 0) for item in items)
        idle: list[_Worker] = []
        busy: dict[_Worker, tuple[Any, int]] = {}
        shares = _shares(self.workers)
        try:
            with _terminable():
                while waiting or busy:
                    while waiting and len(busy) < self.workers:
                        worker = idle.pop() if idle else _Worker(work, shares.pop())
                        try:
                            worker.pipe.send(waiting[0][0])
                        except ConnectionError:  # it died while it was idle
                            worker.stop(_PATIENCE)
                            shares.append(worker.cores)
                            continue
                        busy[worker] = waiting.popleft()
                    multiprocessing.connection.wait([worker.pipe for worker in busy])  # a dead one's is at its end
                    for worker in [worker for worker in busy if worker.pipe.poll()]:
                        item, tries = busy.pop(worker)
                        try:
                            result = worker.pipe.recv()
                            idle.append(worker)
                        except (EOFError, ConnectionError):
                            worker.stop(_PATIENCE)
                            shares.append(worker.cores)
                            if tries < self.retries:
                                waiting.appendleft((item, tries + 1))
                                continue
                            result = Died(f"its worker died {tries + 1} times, last {_ending(worker.process.exitcode)}")
                        yield item, result
        finally:
            for worker in busy:
                worker.process.terminate()  # a run in progress takes it as the order to save
            for worker in (*idle, *busy):
                worker.stop(patience=_PATIENCE)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"by {signal.Signals(-code).name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    return f"with exit code {code}"


class _terminable:
    """Within, SIGTERM raises `Terminated` (in the main thread, which alone can listen)."""

    def __enter__(self) -> None:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._raise)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _raise(*_: object) -> None:
        raise Terminated("terminated; the cells in progress are saved")


# --- Ray


@dataclasses.dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster; on this machine, if no cluster's address is given. Every node must see the directory.

    Attributes:
        workers: actors at a time.
        retries: how often an item is tried again after an actor died.
        address: of the cluster, e.g. `auto`; empty: a cluster of this machine is started, and stopped at the end.
        cpus, gpus: that each actor asks for.
    """

    workers: int = 2
    retries: int = 1
    address: str = ""
    cpus: float = 1
    gpus: float = 0

    def __call__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Results:
        if not items:
            return
        ray = require("ray", "ray")
        own = not ray.is_initialized()
        if own:
            local: dict[str, Any] = {"num_cpus": max(1, round(self.workers * self.cpus)), "include_dashboard": False}
            ray.init(log_to_driver=False, **({"address": self.address} if self.address else local))
        actor = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(_Actor)
        waiting = deque((item, 0) for item in items)
        idle: list[Any] = []
        busy: dict[Any, tuple[Any, Any, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    worker = idle.pop() if idle else actor.remote(work)
                    item, tries = waiting.popleft()
                    busy[worker.work.remote(item)] = worker, item, tries
                (reference, *_), _ = ray.wait(list(busy), num_returns=1)
                worker, item, tries = busy.pop(reference)
                try:
                    result = ray.get(reference)
                    idle.append(worker)
                except ray.exceptions.RayActorError as error:
                    if tries < self.retries:
                        waiting.appendleft((item, tries + 1))
                        continue
                    result = Died(f"its worker died {tries + 1} times: {str(error).strip().splitlines()[0]}")
                yield item, result
        finally:
            if own:
                ray.shutdown()


class _Actor:
    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def work(self, item: Any) -> Any:
        return self._work(item)


# --- Slurm


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster, by submitit; one per item. Every node must see the directory.

    Compiled code is shared between jobs by JAX's own cache on disk, if `JAX_COMPILATION_CACHE_DIR` names one.

    Attributes:
        folder: of submitit's scripts and logs.
        workers: jobs at a time.
        retries: how often an item is tried again after its job died.
        partition: empty: the cluster's default.
        minutes, cpus, gpus, memory_gb: that each job asks for; memory 0: the cluster's default.
        cluster: `slurm`, or `local`: processes of this machine, to try the set-up.
    """

    folder: Path
    workers: int = 8
    retries: int = 1
    partition: str = ""
    minutes: int = 60
    cpus: int = 2
    gpus: int = 0
    memory_gb: int = 0
    cluster: str = "slurm"

    def __call__(self, work: Callable[[Any], Any], items: Sequence[Any]) -> Results:
        if not items:
            return
        submitit = require("submitit", "slurm")
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        except RuntimeError as error:
            raise ValueError(f"--executor slurm: {error}") from None
        options: dict[str, Any] = {"timeout_min": self.minutes, "cpus_per_task": self.cpus}
        options |= {"gpus_per_node": self.gpus} if self.gpus else {}
        options |= {"mem_gb": self.memory_gb} if self.memory_gb else {}
        options |= {"slurm_array_parallelism": self.workers}
        options |= {"slurm_partition": self.partition} if self.partition else {}
        executor.update_parameters(**options)
        jobs: dict[Any, tuple[Any, int]] = {}
        try:
            round_of = [(item, 0) for item in items]
            while round_of:
                started = executor.map_array(work, [item for item, _ in round_of])
                jobs, round_of = dict(zip(started, round_of, strict=True)), []
                for job in submitit.helpers.as_completed(started):
                    item, tries = jobs.pop(job)
                    try:
                        result = job.result()
                    except submitit.core.utils.UncompletedJobError as error:
                        if tries < self.retries:
                            round_of.append((item, tries + 1))
                            continue
                        result = Died(f"its job died {tries + 1} times: {str(error).strip().splitlines()[0]}")
                    yield item, result
        finally:
            for job in jobs:
                job.cancel(check=False)
