"""`Stored`: an array in a file, known by its shape before any of it is in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is read when it is asked for.

    Attributes:
        shape: as declared by the file, and checked against the bytes that it has.
        load: reads it.
    """

    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @classmethod
    def of(cls, value: Any) -> Stored:
        """An array that is in memory already."""
        array = np.asarray(value)
        return cls(array.shape, lambda: array)
