"""Readers against files written by hand, whole, damaged and hostile."""

import gzip
import os
import pickle
import re
import zipfile

import numpy as np
import pytest

from abd_jax.data.readers import read_cifar, read_gtsrb, read_idx, read_svhn
from abd_jax.data.readers.common import damage
from abd_jax.data.readers.gtsrb import resized
from tests.data import originals

GREY = originals.arrays(7, 3, (6, 5, 1), 10)
COLOR = originals.arrays(10, 4, (32, 32, 3), 10)


@pytest.mark.parametrize("compress", [True, False])
def test_idx(tmp_path, compress):
    originals.equal(read_idx(originals.write_idx(tmp_path, GREY, compress)), GREY)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("write", [originals.write_cifar_python, originals.write_cifar_binary])
def test_cifar(tmp_path, classes, write):
    path = write(tmp_path, classes, COLOR)
    originals.equal(read_cifar(tmp_path, classes), COLOR)
    originals.equal(read_cifar(path, classes), COLOR)


def test_cifar_as_python_3_pickles_it(tmp_path):
    path = originals.write_cifar_python(tmp_path, 10, COLOR, lambda content: pickle.dumps(content, protocol=3))
    originals.equal(read_cifar(path, 10), COLOR)


def test_svhn_whose_class_10_is_the_digit_0(tmp_path):
    originals.equal(read_svhn(originals.write_svhn(tmp_path, COLOR)), COLOR)


def by_class(arrays):
    """GTSRB's training images lie in one folder per class."""
    order = np.argsort(arrays.train_labels, kind="stable")
    return arrays._replace(train_images=arrays.train_images[order], train_labels=arrays.train_labels[order])


@pytest.mark.parametrize("forms", [(True,), (False,), (True, False)])
def test_gtsrb_zipped_unpacked_or_both(tmp_path, forms):
    for zipped in forms:
        originals.write_gtsrb(tmp_path, COLOR, zipped)
    originals.equal(read_gtsrb(tmp_path), by_class(COLOR))


def test_gtsrb_in_one_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for members in originals.gtsrb_files(COLOR).values():
            for member, content in members.items():
                archive.writestr(member, content)
    originals.equal(read_gtsrb(tmp_path / "all.zip"), by_class(COLOR))


def triangle(size, side=32):
    """Bilinear weights with antialiasing, `[side, size]`: a tent as wide as the scale, at least 1, on each side."""
    scale = size / side
    centers = (np.arange(side) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centers[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(15, 20), (32, 32), (64, 100)])
def test_gtsrb_images_are_resized_bilinearly(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.einsum("ia,abc,jb->ijc", triangle(height), image.astype(float), triangle(width))
    assert np.abs(resized(originals.ppm(image)) - expected).max() <= 1.1  # Pillow rounds after each direction


READERS = {
    "idx": (read_idx, lambda place: originals.write_idx(place, GREY)),
    "cifar": (lambda place: read_cifar(place, 10), lambda place: originals.write_cifar_python(place, 10, COLOR)),
    "svhn": (read_svhn, lambda place: originals.write_svhn(place, COLOR)),
    "gtsrb": (read_gtsrb, lambda place: originals.write_gtsrb(place, COLOR)),
}


@pytest.mark.parametrize("name", READERS)
def test_every_file_is_needed(tmp_path, name):
    read, write = READERS[name]
    write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        hidden = path.rename(tmp_path / "hidden")
        with pytest.raises(FileNotFoundError, match=path.name):
            read(tmp_path)
        hidden.rename(path)
    with pytest.raises(FileNotFoundError, match="no such"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_every_damage_is_one_value_error_that_names_a_file(tmp_path, name, kind):
    read, write = READERS[name]
    write(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"hello\n" * 40}[kind])
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}.*damaged") as raised:
            read(tmp_path)
        assert "\n" not in str(raised.value)
        path.write_bytes(content)
    read(tmp_path)


def test_idx_of_another_length_or_kind(tmp_path):
    originals.write_idx(tmp_path, GREY)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = originals.idx(GREY.train_labels)
    for content, message in [
        (whole + b"\0", "more are there"),
        (whole[:-1], "only 6 are there"),
        (originals.idx(GREY.train_images[..., 0]), "not 0x00000801"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "promises 4294967295 bytes"),
    ]:
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match=message):
            read_idx(tmp_path)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, ("touch here",)), (eval, ("1",)), (getattr, ("", "join")), (np.load, ("x",)), (np.zeros, (3,))],
)
def test_a_pickle_can_call_nothing(tmp_path, monkeypatch, function, arguments):
    monkeypatch.chdir(tmp_path)
    pickled = lambda content: pickle.dumps(content | {b"evil": Hostile(function, *arguments)}, protocol=3)  # noqa: E731
    path = originals.write_cifar_python(tmp_path, 10, COLOR, pickled)
    with pytest.raises(ValueError, match="which no data needs"):
        read_cifar(path, 10)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of two thousand million entries
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.",  # a string of 10¹⁸ bytes
        b"\x80\x02]" + b"(" * 100_000,
        b"cnumpy.core.multiarray\n_reconstruct\n(NN}b.",
        b"",
    ],
)
def test_a_pickle_made_by_an_enemy(tmp_path, content):
    path = originals.write_cifar_python(tmp_path, 10, COLOR, lambda _: content)
    with pytest.raises(ValueError, match="damaged"):
        read_cifar(path, 10)


def test_what_the_system_says_is_no_damage(tmp_path):
    with pytest.raises(PermissionError), damage(tmp_path):
        raise PermissionError(13, "Permission denied", str(tmp_path))
    with pytest.raises(ValueError, match=r"damaged.*\(MemoryError\)"), damage(tmp_path):
        raise MemoryError


@pytest.mark.parametrize(
    "change",
    [
        {b"data": np.zeros((2, 3072), np.int64)},
        {b"data": np.array([{}, {}], object)},
        {b"data": np.zeros((2, 3071), np.uint8)},
        {b"data": b"bytes"},
        {b"labels": ["cat", "dog"]},
        {b"labels": 3},
    ],
)
def test_a_pickle_of_something_else(tmp_path, change):
    path = originals.write_cifar_python(tmp_path, 10, COLOR, lambda content: pickle.dumps(content | change, protocol=3))
    with pytest.raises(ValueError, match="damaged"):
        read_cifar(path, 10)


def test_a_sign_as_large_as_a_wall(tmp_path):
    with pytest.raises(ValueError, match="2000×1 pixels"):
        resized(originals.ppm(np.zeros((1, 2000, 3), np.uint8)))


def test_a_zip_whose_directory_points_nowhere(tmp_path):
    originals.write_gtsrb(tmp_path, COLOR)
    path = tmp_path / "GTSRB_Final_Test_GT.zip"
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 42 : entry + 46] = b"\xff\xff\xff\x7f"  # where the member is said to begin
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_gtsrb(tmp_path)


def test_a_sign_without_a_class(tmp_path):
    originals.write_gtsrb(tmp_path, COLOR, zipped=False)
    (tmp_path / "GTSRB/Final_Test/Images/00009.ppm").write_bytes(originals.ppm(COLOR.test_images[0]))
    with pytest.raises(ValueError, match=r"tells the classes of 4 images; 5 are there"):
        read_gtsrb(tmp_path)
