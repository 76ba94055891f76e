"""Bounds of settings: the one check that every config makes of itself."""

from __future__ import annotations

import dataclasses
import math
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


def check_seeds(option: str, *seeds: int) -> None:
    """Raises ValueError, naming the option, if a seed is none of both NumPy's and JAX's generators."""
    for seed in seeds:
        if not 0 <= seed < 2**32:
            raise ValueError(f"{option} {seed}: allowed are whole numbers 0 … {2**32 - 1}")
