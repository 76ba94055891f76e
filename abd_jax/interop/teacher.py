"""A teacher from whatever a stranger hands over: a directory of ours, or a file of weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from abd_jax import models
from abd_jax.interop import architectures, description, readers
from abd_jax.interop.description import Description
from abd_jax.interop.stored import Stored
from abd_jax.models import Network
from abd_jax.training import checkpoint

logger = logging.getLogger(__name__)
_CLASSIFIERS = ("fc", "linear", "classifier.1", "classifier.0", "classifier", "head", "params/fc")


def read_teacher(
    path: Path | str,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    dtype: str | None = None,
) -> Network:
    """Reads a network; nothing in the file is run, and no memory is taken for sizes that the network does not have.

    What is not said here is looked for in a YAML file beside the file (see `description.beside`), then in the metadata
    of a safetensors file of ours. Where two of them say otherwise, the first counts and a warning is logged; where the
    file's arrays do, it is an error.

    Args:
        path: a safetensors, PyTorch (`.pth`, `.pt`, `.ckpt`: state dicts) or Flax msgpack file, told apart by content;
            or a directory that `teacher`, `distill` or `reproduce` made, whose own facts then count.
        architecture: see `models.build`; None: told by names and shapes in the file, where they leave no choice.
        num_classes: size of the logits; None: the file's.
        input_shape: height, width, channels of the images.
        mean, std: per-channel normalization of images in [0, 1] that the network was trained with.
        dtype: compute dtype; None: the directory's own, float32 for a file.

    Raises:
        ValueError: one line that names the file, what is wrong with it or with the options, and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            return read_described(path, Description(), dtype)[0]
        raise ValueError(f"{path}: no such file")
    try:
        if input_shape is not None and mean and len(mean) != input_shape[2]:
            raise ValueError(f"mean: {len(mean)} number(s) for images of {input_shape[2]} channel(s)")
        size = () if input_shape is None else input_shape[:2]
        given = Description(architecture, num_classes, size, mean, std)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return read_described(path, given, dtype)[0]


def read_described(path: Path, given: Description, dtype: str | None = None) -> tuple[Network, dict[str, Any]]:
    """A network with what is known of it; see `read_teacher`.

    Args:
        path: a directory of ours, or a file.
        given: what a person says of the file; of a directory nothing may be said.
        dtype: compute dtype; None: the directory's own, float32 for a file.

    Returns:
        The network and its notes: a directory's own; of a file `architecture`, `digest` of the variables, `file` and
        `classes` (names, which may be none).

    Raises:
        ValueError: as `read_teacher`.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or directory")
    if not path.is_file():
        if given != Description():
            said = ", ".join(given.said)
            raise ValueError(f"{path}: a directory; {said} can be said of a file alone, a directory tells it itself")
        inner = path / "network"
        network, notes = checkpoint.load_network(inner if inner.is_dir() else path)
        if dtype is None:
            return network, notes
        module = models.build(str(notes["architecture"]), network.module.num_classes, dtype)
        return dataclasses.replace(network, module=module), notes
    beside = description.beside(path)
    facts = given.over(beside)
    overruled = given.against(beside, "the YAML file beside it")
    with readers.open_arrays(path) as contents:
        own = description.from_metadata(contents.metadata)
        overruled += facts.against(own, "its own metadata")
        facts = facts.over(own)
        name = _architecture(facts.architecture, contents.arrays)
        classes = facts.num_classes if facts.num_classes is not None else _classes(contents)
        facts = dataclasses.replace(facts, num_classes=classes)
        shape = facts.input_shape
        template = models.abstract(
            name,
            num_classes=classes,
            input_shape=shape,
            mean=facts.mean,
            std=facts.std,
            dtype=dtype or "float32",
        )
        height, width, channels = shape
        what = f"{name} with {classes} classes for {height}×{width}×{channels} images"
        try:
            if contents.style == "flax":
                variables = architectures.variables_from_flax(template.variables, contents.arrays, what)
            else:
                variables = architectures.variables_from_torch(
                    template.module, template.variables, contents.arrays, what
                )
        except ValueError as error:
            found = architectures.infer(contents.arrays)
            if not found or name in found:
                raise
            raise ValueError(f"{error}; its entries look like those of {' or '.join(found)}") from error
    for line in overruled:
        logger.warning("%s: %s", path, line)
    notes = {
        "architecture": name,
        "digest": checkpoint.digest(variables),
        "file": path.name,
        "classes": list(facts.classes),
    }
    return dataclasses.replace(template, variables=variables), notes


def _architecture(name: str | None, arrays: dict[str, Stored]) -> str:
    if name is not None:
        return name.lower()
    found = architectures.infer(arrays)
    if len(found) == 1:
        return found[0]
    allowed = f"allowed are {'; '.join(family.NAMES for family in models.FAMILIES)}"
    if found:
        raise ValueError(f"its weights fit {' and '.join(found)} alike: say which with architecture")
    shown = ", ".join(sorted(arrays)[:3])[:200]
    raise ValueError(f"no architecture known has its entries ({shown}, …): say which with architecture; {allowed}")


def _classes(contents: readers.Contents) -> int:
    for owner in _CLASSIFIERS:
        bias = contents.arrays.get(f"{owner}/bias" if contents.style == "flax" else f"{owner}.bias")
        if bias is not None and len(bias.shape) == 1:
            return bias.shape[0]
    raise ValueError("no classifier found in it that tells the number of classes: say it with num_classes")
