"""What came out of each network: the rows of `results.json`, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from abd_jax.report.files import is_number, read_json

_RATES = ("acc", "asr", "ra")


@dataclasses.dataclass(frozen=True)
class Row:
    """One network's result, as in `results.json`; rates in [0, 1]."""

    preset: str
    dataset: str
    method: str
    trigger: str
    seed: int
    role: str
    defense: str
    acc: float
    asr: float
    ra: float
    seconds: float


def parse_row(raw: object, where: str = "results") -> Row:
    """A checked row.

    Args:
        raw: a mapping with at least the fields of `Row`.
        where: what to name in an error.

    Raises:
        ValueError: a field is missing or out of range.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: expected an object, found {type(raw).__name__}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Row):
        if field.name not in raw:
            raise ValueError(f"{where}: the field {field.name!r} is missing")
        value = raw[field.name]
        if field.type == "float":
            limit = 1.0 if field.name in _RATES else math.inf
            if not is_number(value) or not 0 <= value <= limit or math.isinf(value):
                allowed = "in [0, 1]" if field.name in _RATES else "from 0"
                raise ValueError(f"{where}: {field.name} {value!r}: allowed are numbers {allowed}")
            value = float(value)
        elif field.type == "int" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{where}: {field.name} {value!r}: allowed are whole numbers")
        elif field.type == "str" and not isinstance(value, str):
            raise ValueError(f"{where}: {field.name} {value!r}: allowed is text")
        values[field.name] = value
    if values["role"] not in ("teacher", "student"):
        raise ValueError(f"{where}: role {values['role']!r}: allowed are teacher, student")
    return Row(**values)


def read_rows(directory: Path) -> list[Row]:
    """The rows of `results.json`, and of any finished run that it does not list yet.

    Raises:
        ValueError: a malformed file.
    """
    rows: dict[tuple[str, str, int, str], Row] = {}
    for path in sorted((*directory.glob("teachers/*/result.json"), *directory.glob("students/*/result.json"))):
        row = parse_row(read_json(path), str(path))
        rows[row.role, row.trigger, row.seed, row.defense] = row
    path = directory / "results.json"
    if path.is_file():
        listed = read_json(path)
        if not isinstance(listed, list):
            raise ValueError(f"{path}: expected a list of rows, found {type(listed).__name__}")
        for index, raw in enumerate(listed):
            row = parse_row(raw, f"{path}: row {index}")
            rows[row.role, row.trigger, row.seed, row.defense] = row
    return list(rows.values())
