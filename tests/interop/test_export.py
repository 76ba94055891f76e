"""What is exported gives the same logits elsewhere, and the model card says what is known."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import serialization

from abd_jax.interop import export
from tests.networks import images, network

forward = jax.jit(lambda network, images: network(images).logits)

ELSEWHERE = """
import sys

class NotHere:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("abd_jax", "flax", "tests", "experiments"):
            raise ImportError(name)

sys.meta_path.insert(0, NotHere())
import numpy as np
from jax import export

network = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert network.platforms == ("cpu", "cuda", "tpu"), network.platforms
for batch in (1, 6):
    images = np.load(sys.argv[2])[:batch]
    np.testing.assert_allclose(network.call(images), np.load(sys.argv[3])[:batch], rtol=1e-4, atol=1e-4)
assert not {"abd_jax", "flax"} & set(sys.modules)
"""


@pytest.mark.parametrize("name", ["wrn-10-1", "vit-nano-4"])
def test_stablehlo_runs_in_a_process_without_this_package(tmp_path, name):
    ours, batch = network(name), images()
    (tmp_path / "student.stablehlo").write_bytes(export.to_stablehlo(ours, name))
    np.save(tmp_path / "images.npy", batch)
    np.save(tmp_path / "logits.npy", forward(ours, batch))
    files = [str(tmp_path / file) for file in ("student.stablehlo", "images.npy", "logits.npy")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *files], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_stablehlo_of_every_family_is_lowered_for_every_platform():
    for name in ("resnet-18", "vgg-11", "mobilenet-v2"):
        exported = jax.export.deserialize(bytearray(export.to_stablehlo(network(name), name)))
        assert exported.platforms == export.PLATFORMS
        assert str(exported.in_avals[0].shape) == "(batch, 8, 8, 1)"


def test_safetensors_have_pytorchs_names_and_say_what_they_are(tmp_path):
    ours = network("wrn-10-1", shape=(8, 8, 3))
    path = tmp_path / "student.safetensors"
    path.write_bytes(export.to_safetensors(ours, "wrn-10-1"))
    state = safetensors.numpy.load_file(path)
    np.testing.assert_array_equal(state["fc.weight"], ours.params["fc"]["kernel"].T)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "architecture": "wrn-10-1",
            "num_classes": "4",
            "input_shape": "8 8 3",
            "mean": "0.5 0.4 0.3",
            "std": "0.2 0.25 0.3",
        }


def test_flax_restores_the_variables():
    ours = network("vit-nano-4")
    back = serialization.msgpack_restore(export.to_flax(ours, "vit-nano-4"))
    jax.tree.map(np.testing.assert_array_equal, back, dict(ours.variables))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-18-imagenet", "vgg-11", "mobilenet-v2", "vit-nano-4"])
def test_onnx_gives_the_same_logits(name):
    """With the extra `onnx` alone."""
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    ours, batch = network(name), np.asarray(images())
    session = runtime.InferenceSession(export.to_onnx(ours, name))
    expected = np.asarray(forward(ours, batch))
    for count in (1, 6):
        (logits,) = session.run(["logits"], {"images": batch[:count]})
        np.testing.assert_allclose(logits, expected[:count], rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_onnx_without_its_extra_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ValueError, match=r"^format onnx needs the extra `onnx`: pip install 'abd-jax\[onnx\]'$"):
        export.to_onnx(network(), "wrn-10-1")


FACTS = {
    "architecture": "wrn-10-1",
    "digest": "0abc",
    "role": "student",
    "defense": "abd",
    "teacher.digest": "9fed",
    "trigger": "a | b\nc",
    "preset.student.cycles": 600,
}


def test_the_card_says_what_is_known():
    text = export.card(network(), "stablehlo", "student.bin", FACTS | {"acc": 0.9, "asr": 0.015, "ra": 0.8})
    for row in (
        "| architecture | wrn-10-1 |",
        "| parameters | 77,172 |",
        "| classes | 4 |",
        "| SHA-256 of the variables | 0abc |",
        "| teacher.digest | 9fed |",
        "| defense | abd |",
        "| dataset | not known |",
        "| trigger | a \\| b c |",
        "| ACC | 90.00 % |",
        "| ASR | 1.50 % |",
        "| student.cycles | 600 |",
    ):
        assert row in text.splitlines()
    assert 'jax.export.deserialize(bytearray(open("student.bin"' in text


@pytest.mark.parametrize("format", export.FORMATS)
def test_the_card_of_unknown_origin(format):
    text = export.card(network(), format, "student.bin", {"architecture": "wrn-10-1"})
    assert "Nothing is known." in text and "## Settings" not in text and "student.bin" in text
