"""Prepared arrays on disk: four .npy files and a manifest with their digests, written whole or not at all.

They lie in `$ABD_JAX_DATA/NAME` (default: `~/.cache/abd_jax/NAME`) and are mapped into memory, so that a start costs
the digest's pass alone, and a set may be larger than the memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from abd_jax.data.catalog import Info
from abd_jax.data.download import download
from abd_jax.data.readers import Arrays, find_prepared, read_prepared

VARIABLE = "ABD_JAX_DATA"
MANIFEST = "manifest.json"
STAGING = ".abd_jax-preparing-"
COMMAND = "python -m experiments datasets prepare"

_FILES = {name: f"{name}.npy" for name in Arrays._fields}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Arrays as they were prepared.

    Attributes:
        arrays: read-only views of the files.
        mean, std: per channel, of the training images in [0, 1], 4 digits.
    """

    arrays: Arrays
    mean: tuple[float, ...]
    std: tuple[float, ...]


def cache_directory() -> Path:
    """Where prepared data sets are."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abd_jax"


def is_prepared(info: Info) -> bool:
    """Whether it can be loaded, as far as a glance tells."""
    return info.read is None or (cache_directory() / info.name / MANIFEST).is_file()


def prepare(info: Info, source: Path | None = None) -> Path:
    """Reads the original files and keeps their arrays in the cache, in the place of what was there; returns where.

    Args:
        info: of the data set.
        source: directory (or archive) with the original files, or what TFDS has prepared as `array_record` (its
            `data_dir`, or the version's directory); None: the files are downloaded.

    Raises:
        FileNotFoundError: a file is not in `source`.
        ValueError: a file is damaged, the arrays are not those of this data set, or foreign files are in their place.
        OSError: the network or the disk is not as needed; nothing is left half-written.
    """
    if info.read is None:
        raise ValueError(f"{info.name} comes inside scikit-learn: there is nothing to prepare")
    directory = cache_directory()
    target = directory / info.name
    if not _is_ours(target):
        raise ValueError(f"{target}: holds other files than prepared arrays; move it, or set {VARIABLE} elsewhere")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        staging = tempfile.TemporaryDirectory(dir=directory, prefix=STAGING)
    except OSError as error:
        raise OSError(f"{directory}: cannot be written ({error.strerror}); set {VARIABLE} to another place") from error
    with staging as name:
        made = find_prepared(info.name, source) if source else None
        arrays = read_prepared(made) if made else info.read(source or download(info, Path(name) / "download"))
        check(info, arrays)
        try:
            return _write(arrays, Path(name), target)
        except OSError as error:
            raise OSError(f"{directory}: the arrays cannot be written ({error}); nothing was kept") from error


def _is_ours(target: Path) -> bool:
    """Whether a place is free, or holds nothing but prepared arrays, so that it may be replaced."""
    if not target.exists():
        return True
    return target.is_dir() and {path.name for path in target.iterdir()} <= {MANIFEST, *_FILES.values()}


def _remove_leftovers(directory: Path) -> None:
    """Deletes what processes that were killed have left; who is still at work is younger than a day."""
    for path in directory.glob(f"{STAGING}*"):
        if time.time() - path.stat().st_mtime > 86_400:
            shutil.rmtree(path, ignore_errors=True)


def _write(arrays: Arrays, staging: Path, target: Path) -> Path:
    fresh = staging / "new"
    fresh.mkdir()
    digests = {}
    for name, array in arrays._asdict().items():
        path = fresh / _FILES[name]
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        digests[name] = _digest(path)
    mean, std = statistics(arrays.train_images)
    manifest = {"sha256": digests, "mean": mean, "std": std}
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if target.exists():
        target.rename(staging / "old")  # a directory can replace only an empty one
    fresh.rename(target)
    return target


def load(info: Info) -> Prepared:
    """The prepared arrays, after their digests were verified.

    Raises:
        FileNotFoundError: it is not prepared; names the command that does it.
        ValueError: what is there is damaged.
    """
    directory = cache_directory() / info.name
    if not is_prepared(info):
        raise FileNotFoundError(
            f"data set {info.name} is not prepared in {directory.parent}; run: {COMMAND} {info.name}"
            f" (with --from DIR if its files are on this machine)"
        )
    again = f"prepare it again: {COMMAND} {info.name}"
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        digests, mean, std = manifest["sha256"], tuple(manifest["mean"]), tuple(manifest["std"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / MANIFEST}: damaged; {again}") from error
    loaded = {}
    for name, file in _FILES.items():
        path = directory / file
        if not path.is_file() or _digest(path) != digests.get(name):
            raise ValueError(f"{path}: damaged (its SHA-256 is not the manifest's); {again}")
        loaded[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    arrays = Arrays(**loaded)
    check(info, arrays)
    return Prepared(arrays, mean, std)


def check(info: Info, arrays: Arrays) -> None:
    """Raises ValueError if these are not as many images of that shape with such labels as the data set has."""
    for part, count in (("train", info.train), ("test", info.test)):
        images, labels = getattr(arrays, f"{part}_images"), getattr(arrays, f"{part}_labels")
        if images.shape != (count, *info.image_shape) or images.dtype != np.uint8:
            raise ValueError(
                f"{info.name}: {part} images are {images.dtype}{list(images.shape)},"
                f" expected uint8{[count, *info.image_shape]}"
            )
        if labels.shape != (count,):
            raise ValueError(f"{info.name}: {len(labels)} {part} labels, expected {count}")
        if labels.min() < 0 or labels.max() >= len(info.classes):
            raise ValueError(
                f"{info.name}: {part} labels from {labels.min()} to {labels.max()},"
                f" expected 0 to {len(info.classes) - 1}"
            )


def statistics(
    images: UInt8[np.ndarray, "n height width channels"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the images in [0, 1], 4 digits, from its histogram."""
    levels = np.arange(256) / 255
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    means = [np.average(levels, weights=count) for count in counts]
    stds = [np.sqrt(np.average((levels - mean) ** 2, weights=count)) for count, mean in zip(counts, means, strict=True)]
    return tuple(round(float(mean), 4) for mean in means), tuple(round(float(std), 4) for std in stds)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
