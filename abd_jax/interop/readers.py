"""A stranger's file: what it holds by name, as arrays that are read when they are asked for; nothing in it is run.

The format is told by the content, never by the file's name: safetensors, PyTorch's two, or Flax's msgpack.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from abd_jax.interop import pickles
from abd_jax.interop.stored import Stored

WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network")
"""Under which training scripts keep the state dict beside other things."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""Of DataParallel, Lightning and torch.compile; taken away where every name has them."""
_NONE = "no safetensors, PyTorch or Flax msgpack file"
_OTHERS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file, which Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<": "a web page or other XML",
}
"""Beginnings of files that get here by mistake."""
_MOST_MSGPACK = 4 * 2**30
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""Of safetensors; there are others, of which NumPy knows nothing."""


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        style: whose names and layouts: PyTorch's (`conv1.weight`, OIHW) or Flax's (`params/conv1/kernel`, HWIO).
        arrays: by name.
        metadata: text that a safetensors file carries.
    """

    style: Literal["torch", "flax"]
    arrays: dict[str, Stored]
    metadata: dict[str, str]


@contextmanager
def open_arrays(path: Path) -> Iterator[Contents]:
    """The arrays of a file, which can be read inside the `with`.

    Raises:
        ValueError: not there, no known format, damaged, more than tensors in it, or no single state dict.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(32)
        if zipfile.is_zipfile(path):
            with pickles.open_zip(path) as tree:
                yield Contents("torch", state_dict(tree), {})
        elif head[8:9] == b"{":
            with _open_safetensors(path) as contents:
                yield contents
        elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
            with pickles.open_legacy(path) as tree:
                yield Contents("torch", state_dict(tree), {})
        elif other := _other(head):
            raise ValueError(f"{_NONE}, but {other}")
        else:
            yield Contents("flax", _read_msgpack(path), {})
    except (ValueError, OSError, MemoryError, RecursionError) as error:
        shown = "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in str(error))
        reason = " ".join(shown.split()) or type(error).__name__
        raise ValueError(reason if reason.startswith(str(path)) else f"{path}: {reason}") from error


def state_dict(tree: Any) -> dict[str, Stored]:
    """The one dict of tensors in what a PyTorch file holds, without the prefixes that all its names share.

    Raises:
        ValueError: there is none, or more than one, or it holds more than tensors.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"holds a {type(tree).__name__.strip('_')}: allowed is a state dict")
    if any(isinstance(value, Stored) for value in tree.values()):
        found = {"": tree}
    else:
        found = {name: tree[name] for name in WRAPPERS if isinstance(tree.get(name), dict) and tree[name]}
    if not found:
        raise ValueError(f"holds no state dict, neither at the top nor under {', '.join(WRAPPERS)}")
    if len(found) > 1:
        raise ValueError(f"holds several networks, under {' and '.join(found)}: save one of them alone")
    (state,) = found.values()
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Stored):
            raise ValueError(f"its entry {str(name)[:80]!r} is no tensor")
    return without_prefixes(state)


def without_prefixes(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Takes away each prefix of `PREFIXES` that every name has."""
    state = dict(state)
    while state and (shared := [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)]):
        state = {name[len(shared[0]) :]: value for name, value in state.items()}
    return state


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Contents]:
    """The library itself checks the header's size and that the offsets cover the file, each byte once."""
    try:
        with safe_open(path, framework="numpy") as file:

            def stored(name: str) -> Stored:
                entry = file.get_slice(name)
                if (dtype := entry.get_dtype()) not in _DTYPES:
                    raise ValueError(f"{name[:80]} has dtype {dtype}: allowed are {', '.join(_DTYPES)}")
                return Stored(tuple(entry.get_shape()), lambda: file.get_tensor(name))

            arrays = {name: stored(name) for name in file.keys()}  # noqa: SIM118, since it is no mapping
            yield Contents("torch", without_prefixes(arrays), dict(file.metadata() or {}))
    except SafetensorError as error:
        raise ValueError(f"damaged safetensors file ({error})") from error


def _other(head: bytes) -> str | None:
    """What a file that begins so is, if it is one of some common kinds without weights that are read here."""
    if not head:
        return "an empty one"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "an ONNX file"
    return next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None)


def _read_msgpack(path: Path) -> dict[str, Stored]:
    if path.stat().st_size > _MOST_MSGPACK:
        raise ValueError("no PyTorch or safetensors file, and too large for Flax's msgpack (at most 4 GiB)")
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{_NONE}, or a damaged one ({type(error).__name__})") from error
    if not isinstance(tree, dict) or not tree or not all(isinstance(name, str) for name in tree):
        raise ValueError(_NONE)
    if "params" not in tree:
        raise ValueError(f"a msgpack file without params: it has {', '.join(sorted(tree))[:80]}")
    leaves = flatten_dict({kind: tree[kind] for kind in tree if tree[kind]})
    for names, value in leaves.items():
        if not all(isinstance(name, str) for name in names) or not isinstance(value, np.ndarray | np.generic):
            raise ValueError(f"its entry {str(names)[:80]} is no array")
    return {"/".join(names): Stored.of(value) for names, value in leaves.items()}
