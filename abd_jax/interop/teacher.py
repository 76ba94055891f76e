"""A teacher from whatever a stranger hands over: a directory of ours, or a file of weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from abd_jax import models
from abd_jax.interop import architectures, readers
from abd_jax.interop.stored import Stored
from abd_jax.models import Network
from abd_jax.training import checkpoint

_CLASSIFIERS = ("fc", "linear", "classifier.1", "classifier.0", "classifier", "head", "params/fc")
_CLASSES = range(2, 100_001)


def read_teacher(
    path: Path | str,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str = "float32",
) -> Network:
    """Reads a network; nothing in the file is run, and no memory is taken for sizes that the network does not have.

    Args:
        path: a safetensors, PyTorch (`.pth`, `.pt`, `.ckpt`: state dicts) or Flax msgpack file, told apart by content;
            or a directory that `teacher`, `distill` or `reproduce` made, whose own facts then count.
        architecture: see `models.build`; None: told by names and shapes in the file, where they leave no choice.
        num_classes: size of the logits; None: the file's.
        input_shape: height, width, channels of the images.
        mean, std: per-channel normalization of images in [0, 1] that the network was trained with.
        dtype: compute dtype.

    Raises:
        ValueError: one line that names the file, what is wrong with it or with the options, and what is allowed.
    """
    path = Path(path)
    if path.is_dir():
        inner = path / "network"
        network, _ = checkpoint.load_network(inner if inner.is_dir() else path)
        return network
    with readers.open_arrays(path) as contents:
        name = _architecture(architecture or contents.metadata.get("architecture"), contents.arrays)
        classes = num_classes if num_classes is not None else _classes(contents)
        if classes not in _CLASSES:
            raise ValueError(f"num_classes {classes}: allowed are 2 … 100000")
        template = models.abstract(name, num_classes=classes, input_shape=input_shape, mean=mean, std=std, dtype=dtype)
        height, width, channels = input_shape
        what = f"{name} with {classes} classes for {height}×{width}×{channels} images"
        if contents.style == "flax":
            variables = architectures.variables_from_flax(template.variables, contents.arrays, what)
        else:
            variables = architectures.variables_from_torch(template.module, template.variables, contents.arrays, what)
    return dataclasses.replace(template, variables=variables)


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
