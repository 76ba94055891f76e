"""Facts beside a stranger's file: from options, from YAML, from metadata, and what is wrong with them in one line."""

import re

import pytest

from abd_jax.interop import description, export, read_teacher
from abd_jax.interop.description import Description
from tests import networks

FACTS = """
architecture: wrn-10-1
image_size: 8
mean: 0.45
std: [0.25]
classes: [zero, 1, two]
"""


def test_a_file_beside_says_what_the_weights_do_not(tmp_path):
    ours = networks.network("wrn-10-1", classes=3)
    for name, facts in (("a.bin", "a.bin.yaml"), ("b.bin", "b.yaml"), ("c.bin", "c.yml"), ("e.bin", "e.yml")):
        (tmp_path / name).write_bytes(export.to_flax(ours, "wrn-10-1"))
        (tmp_path / facts).write_text(FACTS.replace("architecture", "arch") if name == "e.bin" else FACTS)
        said = description.beside(tmp_path / name)
        assert said == Description("wrn-10-1", None, (8,), (0.45,), (0.25,), ("zero", "1", "two"))
        network = read_teacher(tmp_path / name)
        assert (network.input_shape, network.mean, network.std) == ((8, 8, 1), (0.45,), (0.25,))
    assert description.beside(tmp_path / "d.bin") == Description()


def test_what_is_said_counts_before_the_file_beside_and_that_before_the_metadata(tmp_path):
    ours = networks.network("wrn-10-1", classes=3)
    path = tmp_path / "t.safetensors"
    path.write_bytes(export.to_safetensors(ours, "wrn-10-1"))
    assert read_teacher(path).mean == ours.mean
    (tmp_path / "t.yaml").write_text("mean: 0.25\nstd: 0.5\n")
    network = read_teacher(path)
    assert (network.mean, network.std, network.input_shape) == ((0.25,), (0.5,), (8, 8, 1))
    network = read_teacher(path, mean=(0.125,))
    assert (network.mean, network.std) == ((0.125,), (0.5,))


def test_a_contradiction_is_told_in_one_line_each(tmp_path, caplog):
    ours = networks.network("mobilenet-v2", classes=3, shape=(8, 8, 1))
    path = tmp_path / "t.safetensors"
    path.write_bytes(export.to_safetensors(ours, "mobilenet-v2"))
    read_teacher(path, architecture="MobileNet-v2", input_shape=(8, 8, 1), mean=ours.mean, std=ours.std)
    assert caplog.messages == []
    (tmp_path / "t.yaml").write_text("architecture: mobilenet-v2-imagenet\nmean: 0.25\n")
    read_teacher(path, mean=(0.125,), input_shape=(16, 16, 1))
    (own,) = ours.mean
    assert caplog.messages == [
        f"{path}: mean 0.125 counts, not 0.25, which the YAML file beside it says",
        f"{path}: architecture mobilenet-v2-imagenet counts, not mobilenet-v2, which its own metadata says",
        f"{path}: image_size 16 16 counts, not 8 8, which its own metadata says",
        f"{path}: mean 0.125 counts, not {own}, which its own metadata says",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected facts by name, found list"),
        ("", "expected facts by name, found NoneType"),
        ("sdt: 1", "unknown fact 'sdt' (did you mean 'std'?): allowed are architecture, num_classes"),
        ("arch: wrn-10-1\narchitecture: wrn-10-1", "arch and architecture: are the same fact"),
        ("mean: [a]", "mean: expected a number, found str"),
        ("mean: .nan", "mean nan: allowed are 1 or 3 finite numbers"),
        ("std: 0", "std 0.0: allowed are numbers above 0"),
        ("mean: 125\nstd: 0.2", "mean 125.0, std 0.2: allowed are at most 1"),
        ("mean: 0.5\nstd: 63", "divide what is of 0 … 255 by 255"),
        ("num_classes: true", "num_classes: expected a whole number, found bool"),
        ("num_classes: 1000000000", "num_classes 1000000000: allowed are 2 … 100000"),
        ("image_size: [8, 8, 8]", "image_size 8 8 8: allowed are one or two sides of 8–64 pixels"),
        ("num_classes: 3\nclasses: [a, b]", "classes: 2 names for num_classes 3"),
        ("classes: [[a]]", "classes: expected text, found list"),
        ("architecture: 3", "architecture: expected text, found int"),
        ("mean: !!python/object/apply:os.system ['touch HERE']", "no YAML (could not determine a constructor"),
        ("a: &a [*a]\nb: {", "no YAML"),
        ("mean: " + "[" * 5000, "no YAML"),
        ("# " + "x" * 70_000, "70002 bytes: allowed are 65536"),
    ],
)
def test_bad_facts_are_one_line(tmp_path, text, message):
    (tmp_path / "t.bin.yaml").write_text(text.replace("HERE", str(tmp_path / "executed")))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        description.beside(tmp_path / "t.bin")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "t.bin.yaml"))
    assert len(str(error.value)) < 400
    assert not (tmp_path / "executed").exists()
