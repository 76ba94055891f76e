"""GTSRB, the German traffic signs (Stallkamp et al., 2012): zips of PPM images of 15 to 250 pixels a side."""

from __future__ import annotations

import csv
import functools
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from abd_jax.data.readers.common import Arrays, damage

SIDE = 32
LARGEST_SIDE = 1024
LARGEST_FILE = 16 << 20
_TRAIN = re.compile(r"Final_Training/Images/(\d{5})/[^/]+\.ppm$")
_TEST = re.compile(r"Final_Test/Images/([^/]+\.ppm)$")
_TRUTH = re.compile(r"(?:^|/)GT-final_test\.csv$")

Files = dict[str, Callable[[], bytes]]


def read_gtsrb(source: Path) -> Arrays:
    """The recognition benchmark's final training and test sets; whole images, bilinear to 32×32.

    Args:
        source: a zip, or a directory with GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and
            GTSRB_Final_Test_GT.zip, or with what unpacking them leaves; the two may be mixed.

    Raises:
        FileNotFoundError: training images, test images or the test images' classes are missing.
        ValueError: something is damaged.
    """
    with ExitStack() as stack:
        files: Files = {}
        for path in _places(source):
            files |= _zipped(path, stack) if path.is_file() else _unpacked(path)
        train = {name: int(match[1]) for name in sorted(files) if (match := _TRAIN.search(name))}
        test = {match[1]: name for name in sorted(files) if (match := _TEST.search(name))}
        truth = next((name for name in sorted(files) if _TRUTH.search(name)), None)
        if not train:
            raise FileNotFoundError(f"{source}: no training images (GTSRB_Final_Training_Images.zip) there")
        if not test or truth is None:
            wanted = "GTSRB_Final_Test_GT.zip" if test else "GTSRB_Final_Test_Images.zip"
            raise FileNotFoundError(f"{source}: no {wanted} there, and not what it holds")
        with damage(source / truth):
            rows = csv.DictReader(io.StringIO(files[truth]().decode("ascii")), delimiter=";")
            classes = {row["Filename"]: int(row["ClassId"]) for row in rows}
            if classes.keys() != test.keys():
                raise ValueError(f"it tells the classes of {len(classes)} images; {len(test)} are there")
        order = sorted(test)
        return Arrays(
            _images(source, files, list(train)),
            np.fromiter(train.values(), np.int32),
            _images(source, files, [test[name] for name in order]),
            np.asarray([classes[name] for name in order], np.int32),
        )


def _places(source: Path) -> Iterator[Path]:
    """A directory and the zips in it, or one zip."""
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or directory")
    yield source
    if source.is_dir():
        yield from sorted(source.glob("*.zip"))


def _unpacked(directory: Path) -> Files:
    paths = (path for suffix in ("ppm", "csv") for path in directory.rglob(f"*.{suffix}"))
    return {_short(path.relative_to(directory).as_posix()): path.read_bytes for path in paths}


def _zipped(path: Path, stack: ExitStack) -> Files:
    with damage(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        members = [member for member in archive.infolist() if member.filename.endswith((".ppm", ".csv"))]
        if any(member.file_size > LARGEST_FILE for member in members):
            raise ValueError("a file in it is larger than any of GTSRB's")
    return {_short(member.filename): functools.partial(archive.read, member) for member in members}


def _short(name: str) -> str:
    """The name from the part on that zips and unpacked directories share, so that no image counts twice."""
    return name[max(name.rfind("Final_T"), 0) :]


def _images(source: Path, files: Files, names: list[str]) -> UInt8[np.ndarray, "n 32 32 3"]:
    images = np.empty((len(names), SIDE, SIDE, 3), np.uint8)
    for index, name in enumerate(names):
        with damage(source / name):
            images[index] = resized(files[name]())
    return images


def resized(content: bytes) -> UInt8[np.ndarray, "32 32 3"]:
    """A PPM file's image, bilinear to 32×32.

    Raises:
        ValueError, OSError: no PPM, or larger than 1024 pixels a side.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PPM"]) as image:
        if max(image.size) > LARGEST_SIDE:
            raise ValueError(f"{image.width}×{image.height} pixels")
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
