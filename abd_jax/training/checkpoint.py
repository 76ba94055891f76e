"""Checkpoints: Orbax (v1 API), with a digest of the content that is verified on load.

Orbax loads a flipped byte silently, so every checkpoint carries the SHA-256 of its leaves. Trees are stored flat, by
the path of each leaf, so that a file holds arrays and names and nothing else.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CoroutineType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from abd_jax import models
from abd_jax.models import Network
from abd_jax.training import processes

logger = logging.getLogger(__name__)
Tree = TypeVar("Tree")
Loaded = TypeVar("Loaded")

_POLICIES = ocp.training.save_decision_policies
_KEEP = ocp.training.preservation_policies
_ORBAX = f"{os.sep}orbax{os.sep}"
NETWORK_FILE = "network.json"
_turn = threading.RLock()
"""Held by the thread that calls Orbax, which mixes up two saves or reads that start at once in one process."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run; the message is one line."""


class AnotherStructure(CheckpointError):
    """A checkpoint whose arrays have other names, shapes or types than is asked for."""


def _flat(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def digest(tree: PyTree) -> str:
    """SHA-256 over every leaf's path, dtype, shape and bytes; waits for the device."""
    total = hashlib.sha256()
    for name, leaf in sorted(_flat(tree).items()):
        array = np.asarray(leaf)
        total.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _form(tree: PyTree) -> str:
    """SHA-256 over every leaf's path, dtype and shape: equal for all states of one run."""
    leaves = sorted((name, str(leaf.dtype), tuple(leaf.shape)) for name, leaf in _flat(tree).items())
    return hashlib.sha256(repr(leaves).encode()).hexdigest()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct | np.ndarray:
    """Shape, dtype and placement: Orbax needs the last to read a checkpoint of another number of devices."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if processes.several() and sharding.is_fully_addressable:
        return np.empty(leaf.shape, leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _read(load: Callable[[], Loaded]) -> Loaded:
    """`load()`, and nothing left behind if it fails.

    Orbax closes its event loop on the first read that fails. The reads beside it go on without a loop, and Python
    reports each, with a page of text, when it happens to collect it. So they are collected here, in silence; the error,
    whose traceback keeps them alive, is left with its first line.

    Raises:
        CheckpointError: Orbax could not read it; it reports that as KeyError, ValueError, OSError and its own types.
    """
    with _turn, _abandoned_reads_unreported():
        try:
            return load()
        except Exception as error:
            reason = _first_line(error)
        give_up = time.monotonic() + 30
        gc.collect()
        while any(map(_is_orbax_read, gc.get_objects())) and time.monotonic() < give_up:
            time.sleep(0.01)  # those that TensorStore has not finished are held by it
            gc.collect()
    raise CheckpointError(reason)


def _is_orbax_read(found: object) -> bool:
    return type(found) is CoroutineType and _ORBAX in found.cr_code.co_filename


@contextmanager
def _abandoned_reads_unreported() -> Iterator[None]:
    """Silences what Python, TensorStore and asyncio say of reads whose event loop is gone."""
    report, asyncio_logger = sys.unraisablehook, logging.getLogger("asyncio")

    def others(unraisable: Any) -> None:
        if not (_is_orbax_read(unraisable.object) or str(unraisable.exc_value) == "Event loop is closed"):
            report(unraisable)

    def of_others(record: logging.LogRecord) -> bool:
        return "exception was never retrieved" not in record.getMessage()

    sys.unraisablehook = others
    asyncio_logger.addFilter(of_others)
    try:
        yield
    finally:
        asyncio_logger.removeFilter(of_others)
        sys.unraisablehook = report


def _rebuilt(template: Tree, flat: Mapping[str, Any]) -> Tree:
    paths, structure = jax.tree_util.tree_flatten_with_path(template)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in names])


class Checkpoints:
    """The checkpoints of one run: the newest two, each saved in the background.

    Args:
        directory: made if missing; left-overs of an interrupted save are removed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()
        with _turn:
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                save_decision_policy=_POLICIES.FixedIntervalPolicy(1),
                preservation_policy=_KEEP.LatestN(2),
                cleanup_tmp_directories=True,
            )
        self._pending: Any = None

    def save(self, step: int, state: PyTree) -> None:
        """Starts a save of the state after `step`; waits for the one before.

        Raises:
            CheckpointError: the save before could not be written.
        """
        self.wait()
        if step in [known.step for known in self._checkpointer.checkpoints]:
            return
        notes = {"digest": digest(state), "form": _form(state)}
        arrays = jax.tree.map(processes.saved_as, _flat(state))
        with _turn:
            self._pending = self._checkpointer.save_async(step, arrays, force=True, custom_metadata=notes)

    def wait(self) -> None:
        """Waits for the save under way."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except Exception as error:
                raise CheckpointError(f"cannot write a checkpoint to {self.directory}: {_first_line(error)}") from error

    def load(self, template: Tree) -> tuple[int, Tree] | None:
        """The newest checkpoint that verifies, as (step, state); None if there is none at all.

        A damaged one is named in the log and moved to `damaged/` beside, and the one before it is used.

        Args:
            template: a state of the same structure, shapes and placement.

        Raises:
            CheckpointError: there are checkpoints, but none is whole.
            AnotherStructure: they are of other states than the template; they stay where they are.
        """
        steps = sorted((known.step for known in self._checkpointer.checkpoints), reverse=True)
        abstract, form = {name: _abstract(leaf) for name, leaf in _flat(template).items()}, _form(template)
        for step in steps:
            try:
                with _turn:
                    notes = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
                if notes.get("form", form) != form:
                    raise AnotherStructure(
                        f"checkpoint {self.directory / str(step)} is of another structure, as another version of "
                        "abd_jax writes it: go on with that version, or start again with --overwrite"
                    )
                flat = _read(lambda: self._checkpointer.load(step, abstract))  # noqa: B023
                state = _rebuilt(template, flat)
                if digest(state) != notes.get("digest"):
                    raise CheckpointError("its content does not match its digest")
                return step, state
            except AnotherStructure:
                raise
            except Exception as error:  # Orbax reports damage as KeyError, ValueError, OSError and its own types
                logger.warning("checkpoint %s is damaged (%s)", self.directory / str(step), _first_line(error))
                self._set_aside(step)
        if steps:
            raise CheckpointError(f"no checkpoint in {self.directory} is whole: start again with --overwrite")
        return None

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the way of the next save of its step; nothing that may be of use is deleted."""
        if processes.primary():
            aside = self.directory.with_name("damaged")
            shutil.rmtree(aside / str(step), ignore_errors=True)
            aside.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(aside / str(step))
        processes.meet("a damaged checkpoint aside")
        with _turn:
            self._checkpointer.reload()  # else the step counts as saved, and as one of the two that are kept

    def close(self) -> None:
        """Waits for the save under way and releases Orbax's threads."""
        self.wait()
        with _turn:
            self._checkpointer.close()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


def save_network(directory: Path, network: Network, architecture: str, notes: Mapping[str, Any]) -> str:
    """Writes a network as a thing of its own: arrays by Orbax, and what is needed to rebuild it as JSON.

    Args:
        directory: replaced if it exists; never half written, but absent if the process is killed while it is replaced.
        network: to write.
        architecture: its name for `models.build`.
        notes: JSON-able facts (role, data set, trigger, …) kept beside it.

    Returns:
        The digest of the variables.
    """
    directory = directory.absolute()
    staging = directory.with_name(f".{directory.name}.tmp")
    if processes.primary():
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    processes.meet("a place for a network")
    variables = _flat(dict(network.variables))
    content = digest(variables)
    with _turn:
        ocp.save(staging / "variables", jax.tree.map(processes.saved_as, variables))
    if not processes.primary():
        return content
    facts = {
        "architecture": architecture,
        "num_classes": network.module.num_classes,
        "input_shape": list(network.input_shape),
        "mean": list(network.mean),
        "std": list(network.std),
        "dtype": jnp.dtype(network.module.dtype).name,
        "digest": content,
        **notes,
    }
    (staging / NETWORK_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(staging, directory)
    return content


def load_network(directory: Path) -> tuple[Network, dict[str, Any]]:
    """Reads a network written by `save_network`, with its notes; nothing in the files is executed.

    Raises:
        CheckpointError: missing, damaged, of another shape than it says, or not finite.
    """
    directory = directory.absolute()
    if not (directory / NETWORK_FILE).is_file():
        if not directory.exists():
            raise CheckpointError(f"{directory}: no such directory, so no network here")
        raise CheckpointError(f"{directory}: no network here (no {NETWORK_FILE}), or none yet")
    try:
        facts = json.loads((directory / NETWORK_FILE).read_text())
        template = models.abstract(
            str(facts["architecture"]),
            num_classes=_bounded(facts, "num_classes", 2, 100_000),
            input_shape=tuple(map(int, facts["input_shape"])),
            mean=tuple(map(float, facts["mean"])),
            std=tuple(map(float, facts["std"])),
            dtype=facts["dtype"],
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory / NETWORK_FILE}: {type(error).__name__}: {_first_line(error)}") from error
    wanted = {name: _abstract(leaf) for name, leaf in _flat(dict(template.variables)).items()}
    try:
        loaded = _read(lambda: ocp.load(directory / "variables", wanted))
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory / 'variables'}: damaged, or not the {facts['architecture']} that {NETWORK_FILE} says"
        ) from error
    for name, leaf in loaded.items():
        if not bool(jnp.all(jnp.isfinite(leaf))):
            raise CheckpointError(f"{directory / 'variables'}: {name} holds values that are not finite")
    if digest(loaded) != facts.get("digest"):
        raise CheckpointError(f"{directory / 'variables'}: the content does not match the digest in {NETWORK_FILE}")
    return dataclasses.replace(template, variables=_rebuilt(dict(template.variables), loaded)), facts


def _bounded(facts: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value = int(facts[name])
    if not least <= value <= most:
        raise ValueError(f"{name} {value}: allowed is {least} … {most}")
    return value
