"""`export`: a run's network as one file for elsewhere, with a model card beside it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from abd_jax.interop import export
from abd_jax.report import audit as pages
from abd_jax.training import checkpoint
from abd_jax.training.run_directory import CONFIG_FILE, RESULT_FILE
from abd_jax.writing import write_whole
from experiments.console import stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True)
class Export:
    """Options of `export`."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's directory (its last network), or a network's own: RUN/network, RUN/best."""
    format: Literal["safetensors", "stablehlo", "onnx", "flax"]
    """safetensors: weights, PyTorch's names; stablehlo: the function, for JAX; onnx: the function; flax: weights."""
    out: Path
    """The file; its model card is FILE.md."""
    audit: Path | None = None
    """What `audit` left of this network: its signs go into the card."""
    overwrite: bool = False
    """Replace the file if it exists."""


def main(argv: list[str]) -> None:
    """Parses, exports and prints."""
    options = parse(Export, argv, prog="export", description="A run's network as one file, with a model card.")
    beside = export.check_place(options.out, options.overwrite, "--out", "--overwrite")
    inner = options.directory / "network"
    whole = inner.is_dir() or options.directory.name == "network"
    network, notes = checkpoint.load_network(inner if inner.is_dir() else options.directory)
    run = options.directory if inner.is_dir() else options.directory.absolute().parent
    facts = _read(run / CONFIG_FILE) | (_read(run / RESULT_FILE) if whole else {}) | notes
    if options.audit is not None:
        facts |= {"audit": _signs(options.audit, str(notes["digest"]))}
    content = export.FORMATS[options.format](network, notes["architecture"])
    card = export.card(network, options.format, options.out.name, export.flat(facts))
    write_whole(options.out, content)
    write_whole(beside, card)
    stdout.print(f"{options.out} ({len(content):,} bytes), model card {beside}", highlight=False)


def _signs(directory: Path, digest: str) -> dict[str, str]:
    try:
        return pages.signs_of(_read(directory / pages.JSON_FILE), digest)
    except ValueError as error:
        made = f"`audit --teacher … --out {directory}` makes one"
        raise ValueError(f"--audit {directory}: {error}; {made}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    return content if isinstance(content, dict) else {}
