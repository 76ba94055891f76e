"""Bounds of settings: the checks that every config makes of itself, and of names."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from typing import Any


def check(
    prefix: str,
    settings: Any,
    *,
    positive: tuple[str, ...] = (),
    nonnegative: tuple[str, ...] = (),
    shares: tuple[str, ...] = (),
    up_to_one: tuple[str, ...] = (),
    below_one: tuple[str, ...] = (),
) -> None:
    """Raises ValueError, naming the option and what is allowed, if a number is out of bounds or not finite.

    Args:
        prefix: of the option's name, e.g. student.
        settings: a dataclass; each of its numbers, and of the numbers in its tuples, must be finite.
        positive: names of fields above 0.
        nonnegative: from 0.
        shares: in [0, 1].
        up_to_one: in (0, 1].
        below_one: in [0, 1).
    """
    fields = {field.name: field.type for field in dataclasses.fields(settings)}
    for names, inside, allowed, whole in (
        (positive, lambda value: value > 0, "are numbers above 0", "are whole numbers from 1"),
        (nonnegative, lambda value: value >= 0, "are numbers from 0", "are whole numbers from 0"),
        (shares, lambda value: 0 <= value <= 1, "is [0, 1]", ""),
        (up_to_one, lambda value: 0 < value <= 1, "is (0, 1]", ""),
        (below_one, lambda value: 0 <= value < 1, "is [0, 1)", ""),
    ):
        for name in names:
            if not inside(getattr(settings, name)):
                said = whole if fields[name] in (int, "int") else allowed
                raise ValueError(f"{prefix}.{name} {getattr(settings, name)}: allowed {said}")
    for name in fields:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ValueError(f"{prefix}.{name} {value}: allowed are finite numbers")


def one_of(option: str, value: str, allowed: Iterable[str], hint: str = "") -> str:
    """The value, if it is allowed.

    Args:
        option: its name.
        value: of the option.
        allowed: in the order in which they are listed.
        hint: in place of the nearest name.

    Raises:
        ValueError: it is not allowed; names the option, what is allowed, and the nearest name.
    """
    allowed = list(allowed)
    if value not in allowed:
        if not hint and "," in value:
            hint = "several values are separated by spaces, where several are allowed"
        elif not hint and (near := nearest(value, allowed)):
            hint = f"did you mean {near!r}?"
        raise ValueError(f"{option} {value!r}{f' ({hint})' * bool(hint)}: allowed are {', '.join(allowed)}")
    return value


def nearest(value: str, allowed: Iterable[str]) -> str | None:
    """The name that is most alike, or else the first that begins with it; None: nothing is like it."""
    allowed, value = list(allowed), value.lower()
    close = difflib.get_close_matches(value, allowed, 1)
    return next((name for name in (*close, *allowed) if name in close or (value and name.startswith(value))), None)


def check_seeds(option: str, *seeds: int) -> None:
    """Raises ValueError, naming the option, if a seed is none of both NumPy's and JAX's generators."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"{option} {seed}: allowed are whole numbers 0 … {2**32 - 1}")
