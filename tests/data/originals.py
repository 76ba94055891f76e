"""Tiny files in the formats of the published data sets, written byte by byte and not by the code under test."""

import dataclasses
import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from typing import ClassVar

import numpy as np
import scipy.io

from abd_jax import data
from abd_jax.data.readers import Arrays


def arrays(train, test, shape, classes, seed=0):
    """Random images and labels; every class occurs if there are enough."""
    draw = np.random.default_rng(seed)
    parts = []
    for count in (train, test):
        parts.append(draw.integers(0, 256, (count, *shape), np.uint8))
        parts.append((np.arange(count) % classes).astype(np.int32))
    return Arrays(*parts)


def equal(found, expected):
    for name in Arrays._fields:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other, name)


def tiny(name, train, test):
    """The catalog's facts of a data set, for so few images."""
    return dataclasses.replace(data.info(name), train=train, test=test)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(directory, expected, compress=True):
    directory.mkdir(exist_ok=True)
    parts = (
        ("train", expected.train_images, expected.train_labels),
        ("t10k", expected.test_images, expected.test_labels),
    )
    for part, images, labels in parts:
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            path = directory / f"{part}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    return directory


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings; that is how CIFAR's batches are stored."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        self.write(b"T" + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_string


def python2_pickle(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def planes(images):
    """CIFAR's rows: all red values, all green ones, all blue ones."""
    return np.stack([np.concatenate([image[..., channel].ravel() for channel in range(3)]) for image in images])


def tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def cifar_parts(classes, expected):
    """Name of a batch → its images and labels."""
    test = (expected.test_images, expected.test_labels)
    if classes == 100:
        return {"train": (expected.train_images, expected.train_labels), "test": test}
    fifths = zip(np.split(expected.train_images, 5), np.split(expected.train_labels, 5), strict=True)
    return {f"data_batch_{i}": fifth for i, fifth in enumerate(fifths, 1)} | {"test_batch": test}


def write_cifar_python(directory, classes, expected, pickled=python2_pickle):
    key = b"labels" if classes == 10 else b"fine_labels"
    files = {
        name: pickled({b"data": planes(images), key: labels.tolist(), b"batch_label": b"a batch"})
        for name, (images, labels) in cifar_parts(classes, expected).items()
    }
    return tar(directory / f"cifar-{classes}-python.tar.gz", files | {"batches.meta": b"not read"})


def write_cifar_binary(directory, classes, expected):
    files = {}
    for name, (images, labels) in cifar_parts(classes, expected).items():
        coarse = b"\x07" if classes == 100 else b""
        rows = zip(labels, planes(images), strict=True)
        files[f"{name}.bin"] = b"".join(coarse + bytes([label]) + row.tobytes() for label, row in rows)
    return tar(directory / f"cifar-{classes}-binary.tar.gz", files)


def write_svhn(directory, expected):
    for part in ("train", "test"):
        images, labels = getattr(expected, f"{part}_images"), getattr(expected, f"{part}_labels")
        stored = {
            "X": np.stack(list(images), axis=-1),
            "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8),
        }
        scipy.io.savemat(directory / f"{part}_32x32.mat", stored, do_compression=True)
    return directory


def ppm(image):
    return b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def gtsrb_files(expected):
    """Zip name → member → content, as the official three."""
    numbers: dict[int, int] = {}
    train = {}
    for image, label in zip(expected.train_images, expected.train_labels, strict=True):
        numbers[label] = numbers.get(label, -1) + 1
        train[f"GTSRB/Final_Training/Images/{label:05d}/00000_{numbers[label]:05d}.ppm"] = ppm(image)
    train["GTSRB/Final_Training/Images/00000/GT-00000.csv"] = b"Filename;Width\n"
    test = {f"GTSRB/Final_Test/Images/{i:05d}.ppm": ppm(image) for i, image in enumerate(expected.test_images)}
    test["GTSRB/Final_Test/Images/GT-final_test.test.csv"] = b"Filename;Width\n00000.ppm;32\n"
    rows = [f"{i:05d}.ppm;32;32;{label}" for i, label in enumerate(expected.test_labels)]
    truth = {"GT-final_test.csv": "\r\n".join(["Filename;Width;Height;ClassId", *rows, ""]).encode()}
    names = ("Training_Images", "Test_Images", "Test_GT")
    return dict(zip((f"GTSRB_Final_{name}.zip" for name in names), (train, test, truth), strict=True))


def write_gtsrb(directory, expected, zipped=True):
    for name, members in gtsrb_files(expected).items():
        if zipped:
            with zipfile.ZipFile(directory / name, "w", zipfile.ZIP_DEFLATED) as archive:
                for member, content in members.items():
                    archive.writestr(member, content)
        else:
            for member, content in members.items():
                (directory / member).parent.mkdir(parents=True, exist_ok=True)
                (directory / member).write_bytes(content)
    return directory
