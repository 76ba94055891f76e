"""The cache of prepared arrays: what goes in comes out, or one line says why not."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from abd_jax import data
from abd_jax.data import prepared
from tests.data import originals

EXPECTED = originals.arrays(20, 12, (28, 28, 1), 10)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist


@pytest.fixture
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setenv(prepared.VARIABLE, str(place))
    monkeypatch.setitem(data.CATALOG, "mnist", originals.tiny("mnist", 20, 12))
    return place


@pytest.fixture
def source(tmp_path):
    return originals.write_idx(tmp_path / "originals", EXPECTED)


def test_what_was_prepared_is_loaded(cache, source):
    info = data.info("mnist")
    assert not data.is_prepared(info)
    assert data.prepare(info, source) == cache / "mnist"
    assert data.is_prepared(info)
    dataset = data.load("mnist")
    originals.equal(prepared.load(info).arrays, EXPECTED)
    np.testing.assert_array_equal(dataset.test_images, EXPECTED.test_images)
    assert dataset.name == "mnist" and dataset.classes == tuple("0123456789") and dataset.flip is False
    assert dataset.image_shape == (28, 28, 1)
    pixels = EXPECTED.train_images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), atol=6e-5)
    assert isinstance(dataset.train_images, np.memmap) and not dataset.train_images.flags.writeable


def test_the_manifest_has_the_files_sha256(cache, source):
    data.prepare(data.info("mnist"), source)
    digests = json.loads((cache / "mnist" / "manifest.json").read_text())["sha256"]
    for name, digest in digests.items():
        assert hashlib.sha256((cache / "mnist" / f"{name}.npy").read_bytes()).hexdigest() == digest


def test_published_statistics_come_before_measured_ones(cache, tmp_path, monkeypatch):
    monkeypatch.setitem(data.CATALOG, "cifar10", originals.tiny("cifar10", 10, 4))
    originals.write_cifar_python(tmp_path, 10, originals.arrays(10, 4, (32, 32, 3), 10))
    data.prepare(data.info("cifar10"), tmp_path)
    assert data.load("cifar10").std == (0.2023, 0.1994, 0.2010)


def test_statistics_are_those_of_each_channel():
    images = originals.arrays(9, 1, (5, 4, 3), 2).train_images // np.array([1, 2, 5], np.uint8)
    mean, std = prepared.statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=6e-5)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), atol=6e-5)


def test_what_is_missing_is_told_at_once_with_the_command(cache):
    started = time.perf_counter()
    command = "python -m experiments datasets prepare mnist"
    with pytest.raises(FileNotFoundError, match=f"mnist is not prepared in .*; run: {command}"):
        data.load("mnist")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_one_flipped_bit_is_found(cache, source, name):
    data.prepare(data.info("mnist"), source)
    path = cache / "mnist" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}\.npy: damaged .*prepare it again: python -m experiments datasets"):
        data.load("mnist")
    data.prepare(data.info("mnist"), source)
    data.load("mnist")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"sha256": {}, "mean": 1, "std": 2}', "\udcff"])
def test_a_damaged_manifest_is_found(cache, source, content):
    data.prepare(data.info("mnist"), source)
    (cache / "mnist" / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"manifest\.json: damaged; prepare it again"):
        data.load("mnist")


def test_a_deleted_file_is_found(cache, source):
    data.prepare(data.info("mnist"), source)
    (cache / "mnist" / "test_labels.npy").unlink()
    with pytest.raises(ValueError, match=r"test_labels\.npy: damaged"):
        data.load("mnist")


def test_another_number_of_images_is_another_data_set(cache, tmp_path):
    too_few = originals.write_idx(tmp_path / "few", originals.arrays(19, 12, (28, 28, 1), 10))
    with pytest.raises(ValueError, match=r"train images are uint8\[19, 28, 28, 1\], expected uint8\[20, 28, 28, 1\]"):
        data.prepare(data.info("mnist"), too_few)
    eleven = originals.write_idx(tmp_path / "eleven", originals.arrays(20, 12, (28, 28, 1), 11))
    with pytest.raises(ValueError, match="train labels from 0 to 10, expected 0 to 9"):
        data.prepare(data.info("mnist"), eleven)
    no_labels = originals.arrays(20, 12, (28, 28, 1), 10)._replace(test_labels=np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="0 test labels, expected 12"):
        data.prepare(data.info("mnist"), originals.write_idx(tmp_path / "none", no_labels))
    assert list(cache.iterdir()) == []


def test_a_failed_preparation_keeps_what_was_there(cache, source, tmp_path, monkeypatch):
    data.prepare(data.info("mnist"), source)
    other = originals.write_idx(tmp_path / "other", originals.arrays(20, 12, (28, 28, 1), 10, seed=1))
    monkeypatch.setattr(np, "save", _full_disk)
    with pytest.raises(OSError, match=r"cannot be written \(.*No space left.*\); nothing was kept"):
        data.prepare(data.info("mnist"), other)
    assert [path.name for path in cache.iterdir()] == ["mnist"]
    originals.equal(prepared.load(data.info("mnist")).arrays, EXPECTED)


def _full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_file_that_the_system_refuses_to_let_grow_leaves_nothing(cache, source):
    """A real write that fails half-way: files may not grow past 8 KB."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "from pathlib import Path; from abd_jax import data; from tests.data import originals\n"
        "try: data.prepare(originals.tiny('mnist', 20, 12), Path(sys.argv[1]))\n"
        "except OSError as error: print(error)"
    )
    command = [sys.executable, "-B", "-c", code, str(source)]  # -B: bytecode would be cut too, for whoever imports next
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_is_removed_after_a_day(cache, source):
    old, young, foreign = (cache / name for name in (f"{prepared.STAGING}a", f"{prepared.STAGING}b", ".my-thesis"))
    for place in (old, young, foreign):
        place.mkdir(parents=True)
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    data.prepare(data.info("mnist"), source)
    assert {path.name for path in cache.iterdir()} == {"mnist", young.name, foreign.name}


@pytest.mark.parametrize("beside", [[], ["manifest.json", "train_images.npy"]])
def test_foreign_files_are_not_replaced(cache, beside):
    """As when the originals lie in $ABD_JAX_DATA/mnist themselves."""
    cache.mkdir()
    originals.write_idx(cache / "mnist", EXPECTED)
    for name in beside:
        (cache / "mnist" / name).write_text("")
    before = sorted((cache / "mnist").iterdir())
    with pytest.raises(ValueError, match=r"mnist: holds other files than prepared arrays"):
        data.prepare(data.info("mnist"), cache / "mnist")
    assert sorted((cache / "mnist").iterdir()) == before


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, source):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OSError, match=f"file: cannot be written .*set {prepared.VARIABLE}"):
        data.prepare(originals.tiny("mnist", 20, 12), source)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv(prepared.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared.cache_directory() == tmp_path / "abd_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared.cache_directory() == tmp_path / ".cache" / "abd_jax"
    monkeypatch.setenv(prepared.VARIABLE, "~/sets")
    assert prepared.cache_directory() == tmp_path / "sets"


def test_digits_need_no_preparation():
    info = data.info("digits")
    assert data.is_prepared(info)
    with pytest.raises(ValueError, match="nothing to prepare"):
        data.prepare(info)
    dataset = data.load("digits")
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (info.train, info.test)
    assert (dataset.image_shape, dataset.classes, dataset.flip) == (info.image_shape, info.classes, info.flip)


def test_the_catalog_is_consistent():
    for name, info in data.CATALOG.items():
        assert info.name == name and len(set(info.classes)) == len(info.classes)
        assert not any(side % 4 for side in info.image_shape[:2])  # the networks halve twice
        for values in (info.mean, info.std):
            assert values is None or len(values) == info.image_shape[2]
    sizes = {name: len(info.classes) for name, info in data.CATALOG.items()}
    assert sizes == {
        "digits": 10,
        "mnist": 10,
        "fashion_mnist": 10,
        "cifar10": 10,
        "cifar100": 100,
        "svhn_cropped": 10,
        "gtsrb": 43,
    }
    assert list(data.info("cifar100").classes) == sorted(data.info("cifar100").classes)
    assert re.fullmatch(r"[a-z_,0-9 ]+", ", ".join(data.LOADERS))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_real_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    data.prepare(data.info("fashion_mnist"), DEBIAN)
    started = time.perf_counter()
    dataset = data.load("fashion_mnist")
    assert time.perf_counter() - started < 10
    assert dataset.mean == (0.2860,) and dataset.std == (0.3530,)  # as everybody has measured
    assert (np.bincount(dataset.train_labels) == 6000).all() and (np.bincount(dataset.test_labels) == 1000).all()
    assert dataset.train_labels[:5].tolist() == [9, 0, 0, 3, 0] and dataset.classes[9] == "ankle boot"
