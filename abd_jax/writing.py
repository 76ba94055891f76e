"""Files that are written whole or not at all: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces the file; text is written as UTF-8. What fails leaves the old file and nothing beside it."""
    staging = path.with_name(f".{path.name}-{os.getpid()}.tmp")
    try:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
