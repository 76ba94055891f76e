"""JSON and npz files, read with distrust: a malformed one is one ValueError of one line that names it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def read_text(path: Path) -> str:
    """The file's content as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable: {_one_line(error)}") from None


def read_json(path: Path) -> Any:
    """The file's content.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {_one_line(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}: not JSON that can be read: nested too deeply") from None


def read_arrays(path: Path, *names: str, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray] | None:
    """The named arrays of an npz file, without unpickling anything; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        # Opened here, since np.load leaves the file open if it is no zip file.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            arrays = {name: archive[name] for name in (*names, *optional) if name in archive.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"{path}: not a readable npz file: {_one_line(error)}") from None
    if missing:
        raise ValueError(f"{path}: missing arrays: {', '.join(missing)}")
    return arrays


def mapping(value: object, where: Path) -> Mapping[str, Any]:
    """The value, if it is a JSON object."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(value).__name__}")
    return value


def listing(config: Mapping[str, Any], name: str, kind: type, where: Path) -> tuple[Any, ...]:
    """The named list of a configuration, empty if it is not there; all of it must be of one type."""
    values = config.get(name, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"{where}: {name}: expected a list of {kind.__name__}")
    return tuple(values)


def is_number(value: object) -> bool:
    """Whether a JSON value is a number; `true` and `false` are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
