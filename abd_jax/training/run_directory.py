"""A run's directory: who may write there, what it was started with, and whether it is finished."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from abd_jax.models import onednn
from abd_jax.training import config as configs
from abd_jax.training import processes
from abd_jax.writing import write_whole

Existing = Literal["refuse", "resume", "overwrite"]
CONFIG_FILE, RESULT_FILE = "config.json", "result.json"
PACKAGES = ("abd-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
_NOT_COMPARED = ("versions", "device", "command", "started", "teacher.path")  # a teacher is known by its digest


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, "torch") if onednn.chosen() else PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> str:
    """The devices in words."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform}), {os.cpu_count()} CPU cores"


def write_json(path: Path, content: Any) -> None:
    """Writes whole or not at all; of several processes, the first does."""
    if processes.primary():
        write_whole(path, json.dumps(content, indent=2) + "\n")


def write_arrays(path: Path, **arrays: Any) -> None:
    """An `.npz`, whole or not at all; of several processes, the first does."""
    import numpy as np

    if processes.primary():
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)
        write_whole(path, packed.getvalue())


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """An open run directory."""

    path: Path

    @classmethod
    def open(
        cls,
        path: Path,
        config: Mapping[str, Any],
        existing: Existing,
        option: str = "--out",
        asks: str = "use --resume to go on or --overwrite to start again",
    ) -> RunDirectory:
        """Makes the directory, or goes on with it.

        Args:
            path: of the directory.
            config: JSON-able; what the run is. On resume it must equal what is there.
            existing: what to do if there is a run already.
            option: that names the path, for messages.
            asks: what one does where there is a run already, for messages.

        Raises:
            ValueError: there is a run and `existing` does not allow it, it is another run, or the place is no run's.
        """
        given, path = path, path.absolute()

        def make() -> None:
            try:
                cls._make(path, config, existing, option, asks)
            except OSError as error:
                raise ValueError(f"{option} {given}: cannot be made or read ({error.strerror or error})") from error

        processes.agreed(make)
        return cls(path)

    @classmethod
    def _make(cls, path: Path, config: Mapping[str, Any], existing: Existing, option: str, asks: str) -> None:
        by = {"convolutions": "onednn"} if onednn.chosen() else {}
        config = json.loads(json.dumps({**config, **by, "versions": versions(), "device": device()}))
        stored = path / CONFIG_FILE
        if path.exists() and not path.is_dir():
            raise ValueError(f"{option} {path}: is a file; allowed is a new or empty directory")
        if path.is_dir() and any(path.iterdir()):
            if existing == "refuse":
                raise ValueError(f"{option} {path}: exists already; {asks}")
            if not stored.is_file():
                raise ValueError(
                    f"{option} {path}: is not empty and no run of ours (no {CONFIG_FILE}); use another place"
                )
            if existing == "overwrite":
                if path.is_symlink():
                    raise ValueError(
                        f"{option} {path}: is a symbolic link, which --overwrite does not follow; name its end"
                    )
                if Path.cwd().is_relative_to(path.resolve()):
                    raise ValueError(
                        f"{option} {path}: --overwrite would delete the current directory; call it elsewhere"
                    )
                shutil.rmtree(path)
            else:
                return _check_same(stored, config)
        path.mkdir(parents=True, exist_ok=True)
        write_json(stored, config)

    @property
    def result(self) -> dict[str, Any] | None:
        """The row of a finished run."""
        path = self.path / RESULT_FILE
        found: dict[str, Any] | None = processes.agreed(
            lambda: json.loads(path.read_text()) if path.is_file() else None
        )
        return found

    def finish(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Marks the run as finished."""
        write_json(self.path / RESULT_FILE, dict(row))
        processes.meet(RESULT_FILE)
        return dict(row)


def _check_same(stored: Path, config: Mapping[str, Any]) -> None:
    try:
        before = _leaves(json.loads(stored.read_text()))
    except ValueError as error:
        raise ValueError(f"{stored}: damaged ({error}); use --overwrite to start again") from error
    now = _leaves(config)
    different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"--resume: {stored.parent} was started with {name} = {before.get(name)!r}, now {now.get(name)!r}"
            f" ({len(different)} field(s) differ); use the same settings, or --overwrite"
        )


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    merged: dict[str, Any] = {}
    for name, value in tree.items():
        full = f"{prefix}.{name}" if prefix else name
        if full not in _NOT_COMPARED:
            merged |= _leaves(value, full)
    return merged


def describe(preset: configs.Preset, **facts: Any) -> dict[str, Any]:
    """A run's config: every field of the preset, and what else makes it this run."""
    return {"preset": dataclasses.asdict(preset), **facts}
