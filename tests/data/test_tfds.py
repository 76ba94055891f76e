"""What TFDS has prepared is read without TensorFlow: a tiny MNIST, written by TFDS itself."""

import sys

import pytest
from PIL import Image

from abd_jax import data
from abd_jax.data import prepared
from abd_jax.data.readers import find_prepared, read_prepared
from tests.data import originals

pytestmark = pytest.mark.filterwarnings("ignore")  # of TFDS's own dependencies
EXPECTED = originals.arrays(20, 12, (28, 28, 1), 10)


def write(place, file_format="array_record"):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Mnist(tfds.core.GeneratorBasedBuilder):
            name = "mnist"
            VERSION = tfds.core.Version("3.0.1")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

            def _generate_examples(self, part):
                images, labels = getattr(EXPECTED, f"{part}_images"), getattr(EXPECTED, f"{part}_labels")
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    yield index, {"image": Image.fromarray(image[..., 0]), "label": int(label)}

    Mnist(data_dir=place, file_format=file_format).download_and_prepare()
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tensorflow_datasets"))


def rows(images, labels):
    return sorted((label, image.tobytes()) for image, label in zip(images, labels, strict=True))


def test_prepared_arrays_are_those_that_tfds_wrote(place, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    monkeypatch.setitem(data.CATALOG, "mnist", originals.tiny("mnist", 20, 12))
    data.prepare(data.info("mnist"), place)
    found = prepared.load(data.info("mnist")).arrays
    assert rows(found.train_images, found.train_labels) == rows(EXPECTED.train_images, EXPECTED.train_labels)
    assert rows(found.test_images, found.test_labels) == rows(EXPECTED.test_images, EXPECTED.test_labels)
    assert "tensorflow" not in sys.modules


def test_it_is_found_below_the_data_dir_and_by_its_own_directory(place, tmp_path):
    version = place / "mnist" / "3.0.1"
    assert find_prepared("mnist", place) == find_prepared("mnist", version) == version
    assert find_prepared("cifar10", place) is None and find_prepared("mnist", tmp_path) is None


def test_a_damaged_one_is_one_line(place, tmp_path):
    import shutil

    version = shutil.copytree(place / "mnist" / "3.0.1", tmp_path / "mnist" / "3.0.1")
    for record in version.glob("*array_record*"):
        record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"3\.0\.1: damaged, or another file than its name says"):
        read_prepared(version)


def test_a_format_that_tensorflow_alone_reads_is_named(place, tmp_path):
    import shutil

    version = shutil.copytree(place / "mnist" / "3.0.1", tmp_path / "mnist" / "3.0.1")
    facts = version / "dataset_info.json"
    facts.write_text(facts.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="TFDS wrote it as tfrecord, which TensorFlow alone reads"):
        read_prepared(version)


def test_shapes_are_checked_as_of_any_source(place, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"mnist: train images are uint8\[20, 28, 28, 1\], expected"):
        data.prepare(data.info("mnist"), place)
    assert not (tmp_path / "mnist").exists()
