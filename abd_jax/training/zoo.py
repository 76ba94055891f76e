"""Teachers as things: what a folder of teachers says about itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abd_jax.training import checkpoint

FACTS = ("dataset", "architecture", "trigger", "target", "seed", "acc", "asr", "ra")


def teachers(top: Path) -> list[dict[str, Any]]:
    """Every finished teacher at or below a directory, sorted by path.

    Returns:
        For each: `path` relative to `top`, what `FACTS` names (None if the notes do not tell), `classes` (their
        number), `poisoned` (number of training images), `digest` of the weights.

    Raises:
        ValueError: no such directory, no teacher there, or notes that are no JSON object.
    """
    if not top.is_dir():
        raise ValueError(f"{top}: no such directory")
    found = [
        {
            "path": str(path.parent.relative_to(top)),
            **{name: notes.get(name) for name in FACTS},
            "classes": notes.get("num_classes"),
            "poisoned": len(notes.get("poisoned", ())),
            "digest": notes.get("digest"),
        }
        for path, notes in _notes(top)
        if notes.get("role") == "teacher"
    ]
    if not found:
        raise ValueError(f"{top}: no teacher here; `teacher PRESET --out {top}` makes one")
    return found


def _notes(top: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directory of the network and its notes; what is being written (hidden, until it is complete) is left out."""
    for file in sorted(top.rglob(checkpoint.NETWORK_FILE)):
        if any(part.startswith(".") for part in file.relative_to(top).parts):
            continue
        try:
            notes = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file}: damaged ({error})") from error
        if not isinstance(notes, dict):
            raise ValueError(f"{file}: damaged (no JSON object)")
        yield file.parent, notes
