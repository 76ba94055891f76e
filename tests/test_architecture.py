"""Which room may know which: import-linter's contracts in `pyproject.toml`, and that they can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT_IMPORTS = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
# Top floor first; `abd_jax.interop` is left out, since the contract lets it be missing.
FLOORS = [
    ["experiments"],
    ["abd_jax.api"],
    ["abd_jax.report", "abd_jax.training"],
    ["abd_jax.synthesis", "abd_jax.defenses", "abd_jax.attacks"],
    ["abd_jax.data", "abd_jax.losses"],
    ["abd_jax.models"],
]


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages and the `pyproject.toml` that lie in `root`, in a process with its own `sys.path`."""
    return subprocess.run([sys.executable, "-c", LINT_IMPORTS], cwd=root, capture_output=True, text=True, timeout=120)


def build_house(root: Path) -> None:
    """Write this project's contracts and a package for each room, each importing every room on the floors below."""
    (root / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (root / "abd_jax").mkdir()
    (root / "abd_jax" / "__init__.py").touch()
    for index, floor in enumerate(FLOORS):
        below = [room for lower in FLOORS[index + 1 :] for room in lower]
        for room in floor:
            package = root.joinpath(*room.split("."))
            package.mkdir()
            (package / "__init__.py").write_text("".join(f"import {other}\n" for other in below))


def add_import(root: Path, importer: str, imported: str) -> None:
    """Let a module inside the room `importer` import `imported`."""
    (root.joinpath(*importer.split(".")) / "guest.py").write_text(f"import {imported}\n")


def test_the_rooms_keep_to_the_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_knowing_the_rooms_below_and_beside_is_allowed(tmp_path: Path) -> None:
    build_house(tmp_path)
    add_import(tmp_path, "abd_jax.training", "abd_jax.report")
    add_import(tmp_path, "abd_jax.defenses", "abd_jax.attacks")
    add_import(tmp_path, "abd_jax.data", "abd_jax.losses")
    result = lint_imports(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("abd_jax.training", "experiments"),
        ("abd_jax.attacks", "abd_jax.report"),
        ("abd_jax.synthesis", "abd_jax.training"),
        ("abd_jax.losses", "abd_jax.defenses"),
        ("abd_jax.models", "abd_jax.losses"),
        ("abd_jax.synthesis", "abd_jax.defenses"),
        ("abd_jax.defenses", "abd_jax.synthesis"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(tmp_path: Path, importer: str, imported: str) -> None:
    build_house(tmp_path)
    add_import(tmp_path, importer, imported)
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{importer}.guest -> {imported}" in result.stdout
