"""Rival defenses: what stands beside ABD in the same harness, and the registry of them.

A rival is a frozen dataclass, its settings, with up to four hooks; see `Rival`. A new one is a file and a line in
`Rivals`. All are data-free here: what a published defense does with clean images, these do with the run's synthesized
ones, labeled by the teacher, since nobody else can label them.
"""

from __future__ import annotations

import dataclasses

from abd_jax.defenses.abl import ABL
from abd_jax.defenses.base import Rival
from abd_jax.defenses.clp import CLP
from abd_jax.defenses.dhbe import DHBE
from abd_jax.defenses.fine_pruning import FinePruning
from abd_jax.defenses.i_bau import IBAU
from abd_jax.defenses.nad import NAD


@dataclasses.dataclass(frozen=True)
class Rivals:
    """The registry: name of a defense → its settings."""

    clp: CLP = CLP()
    fine_pruning: FinePruning = FinePruning()
    nad: NAD = NAD()
    i_bau: IBAU = IBAU()
    dhbe: DHBE = DHBE()
    abl: ABL = ABL()


NAMES = tuple(field.name for field in dataclasses.fields(Rivals))


def lookup(rivals: Rivals, defense: str) -> Rival | None:
    """The rival of that name; None for a defense that is none."""
    return getattr(rivals, defense) if defense in NAMES else None
