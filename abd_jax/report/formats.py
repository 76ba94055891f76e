"""Values as a person reads them: rates, times, signed numbers, settings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def percent(share: float) -> str:
    """E.g. `97.0 %`, with a narrow space that does not break."""
    return f"{100 * share:.1f}\u202f%"


def duration(seconds: float) -> str:
    """E.g. `7.3 s`, `4 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(iso: str) -> str:
    """E.g. `2026-11-22 21:36 UTC`; what is no ISO time stays as it is."""
    try:
        return datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return iso


def signed(value: float) -> str:
    """E.g. `−1.25`, with a true minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def number(value: object) -> str:
    """A configured value as a person writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(number, value)) or "–"
    return format(value, ".6g") if isinstance(value, float) else str(value)


def nested(value: object) -> bool:
    """Whether a configured value needs a table of its own."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping | list) for item in value)
    return isinstance(value, Mapping) and bool(value)


def entries(values: Mapping[str, Any] | list[Any]) -> list[tuple[Any, Any]]:
    """Name and value of what is in a mapping or, numbered from 0, in a list."""
    return list(values.items()) if isinstance(values, Mapping) else list(enumerate(values))
