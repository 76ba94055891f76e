"""Golden files: a changed dump fails until `UPDATE_GOLDEN=1 python -m pytest tests/experiments` rewrites it."""

import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden():
    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run with UPDATE_GOLDEN=1 and review it"
        assert text == path.read_text()

    return check
