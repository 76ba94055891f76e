"""ResNet, VGG, MobileNetV2 and ViT: every number of a pass against float64 NumPy, kernels, entries, counts, sizes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.test_util import check_grads

from abd_jax import losses, models
from abd_jax.defenses import shuffling_vaccine
from abd_jax.models import vgg, vit
from tests import networks, reference

forward = jax.jit(lambda network, images, norm: network(images, norm), static_argnums=2)
tail = jax.jit(lambda network, entry, activation: network.tail(entry, activation), static_argnums=1)
SMALL = ["resnet-18", "vgg-11", "mobilenet-v2", "vit-nano-4"]
NAMES = [
    *("resnet-18", "resnet-34", "resnet-50", "resnet-18-imagenet", "resnet-34-imagenet", "resnet-50-imagenet"),
    *("vgg-11", "vgg-16", "mobilenet-v2", "mobilenet-v2-imagenet", "vit-nano-4", "vit-tiny-4", "vit-small-8"),
]
REFERENCES = {
    "resnet": lambda network, *rest: reference.resnet(
        network.variables, network.module.depth, *rest, imagenet=network.module.imagenet
    ),
    "vgg": lambda network, *rest: reference.vgg(network.variables, network.module.depth, *rest),
    "mobilenet": lambda network, *rest: reference.mobilenet(network.variables, *rest, imagenet=network.module.imagenet),
    "vit": lambda network, images, mean, std, norm: reference.vit(
        network.variables, network.module.depth, network.module.heads, network.module.patch, images, mean, std
    ),
}


@pytest.mark.parametrize(
    ("name", "shape", "norm"),
    [
        ("resnet-18", (9, 8, 3), "running"),
        ("resnet-18-imagenet", (17, 16, 1), "batch"),
        ("resnet-50", (8, 8, 1), "running"),
        ("vgg-11", (16, 18, 3), "batch"),
        ("vgg-16", (9, 8, 1), "running"),
        ("mobilenet-v2", (8, 9, 3), "batch"),
        ("mobilenet-v2-imagenet", (16, 16, 1), "running"),
        ("vit-nano-4", (12, 8, 3), "running"),
        ("vit-nano-8", (16, 16, 1), "batch"),
    ],
)
def test_a_pass_against_numpy(name, shape, norm):
    network, images = networks.network(name, 1, shape=shape), networks.images(2, 3 if norm == "running" else 12, shape)
    tolerance = 2e-4 if norm == "running" else 1e-3  # normalizing by a dozen values amplifies their rounding
    result = forward(network, images, norm)
    expected = REFERENCES[name.split("-")[0]](network, images, network.mean, network.std, norm)

    def close(own, theirs, what):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(own, theirs, rtol=1e-3, atol=tolerance * np.abs(theirs).max(), err_msg=what)

    close(result.logits, expected.logits, "logits")
    close(result.embedding, expected.embedding, "embedding")
    assert len(result.stages) == len(expected.stages)
    for index, pair in enumerate(zip(result.stages, expected.stages, strict=True)):
        close(*pair, f"stage {index}")
    assert len(result.batch_norm) == len(expected.taps) == len(network.module.batch_norms)
    for path, own, theirs in zip(network.module.batch_norms, result.batch_norm, expected.taps, strict=True):
        for field in ("mean", "variance", "image_mean"):
            close(getattr(own, field), getattr(theirs, field), f"{path} {field}")


@pytest.mark.parametrize("name", NAMES)
def test_kernels_and_normalizations_are_all_declared(name):
    network = networks.shapes(name, shape=(16, 16, 3))
    leaves = flatten_dict(dict(network.variables), sep="/")
    kernels = {path.removeprefix("params/").removesuffix("/kernel") for path in leaves if path.endswith("/kernel")}
    assert len(set(network.module.kernels)) == len(network.module.kernels)
    assert kernels - set(network.module.kernels) == {"fc"} | {path for path in kernels if path.endswith("depthwise")}
    assert set(network.module.kernels) <= kernels
    assert all(len(leaves[f"params/{kernel}/kernel"].shape) == 4 for kernel in network.module.kernels)
    means = [path.removeprefix("batch_stats/").removesuffix("/mean") for path in leaves if path.endswith("/mean")]
    assert sorted(network.module.batch_norms) == sorted(means)
    entries = [network.module.entry_of(kernel) for kernel in network.module.kernels[1:]]
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    result = jax.eval_shape(lambda network, images: network(images), network, images)
    assert entries == sorted(entries) and set(entries) == set(range(len(result.entries)))
    for wrong in (network.module.kernels[0], "fc", "layer9_0/conv1"):
        with pytest.raises(ValueError, match=f"kernel '{wrong}' lies before"):
            network.module.entry_of(wrong)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet-18", "layer4_0/conv1 layer4_0/conv2 layer4_0/downsample layer4_1/conv1 layer4_1/conv2"),
        ("vgg-11", "conv3_1 conv4_0 conv4_1 conv5_0 conv5_1"),
        ("mobilenet-v2", "features_16/expand features_16/project features_17/expand features_17/project conv_head"),
        ("vit-nano-4", "blocks_4/fc2 blocks_5/qkv blocks_5/proj blocks_5/fc1 blocks_5/fc2"),
    ],
)
def test_the_kernels_that_the_vaccine_shuffles(name, last):
    assert networks.shapes(name, shape=(16, 16, 3)).module.kernels[-5:] == tuple(last.split())


@pytest.mark.parametrize("name", SMALL)
def test_copies_from_the_shared_prefix_equal_whole_shuffled_teachers(name):
    """Every kind of kernel at once, so that a gather missing or misplaced shows."""
    teacher, images = networks.network(name, 3, shape=(8, 8, 1)), networks.images()
    config = shuffling_vaccine.VaccineConfig(copies=2, kernels=min(len(teacher.module.kernels) - 1, 10))
    orders = shuffling_vaccine.draw(jax.random.key(0), teacher, config)
    whole = forward(teacher, images, "running")
    copies = jax.jit(shuffling_vaccine.copies_logits)(teacher, orders, whole)
    for index, copy in enumerate(copies):
        expected = forward(shuffling_vaccine.shuffle(teacher, orders, index), images, "running").logits
        scale = np.abs(expected).max()
        np.testing.assert_allclose(copy, expected, rtol=1e-3, atol=1e-4 * scale)
        assert np.abs(expected - whole.logits).max() > 1e-2 * scale


@pytest.mark.parametrize("name", SMALL)
def test_tail_from_every_third_entry_is_the_rest_of_the_pass(name):
    network, images = networks.network(name, 3), networks.images()
    whole = forward(network, images, "running")
    for entry in range(0, len(whole.entries), max(1, len(whole.entries) // 2 - 1)):
        rest = tail(network, entry, whole.entries[entry])
        np.testing.assert_allclose(rest[0], whole.logits, rtol=1e-3, atol=1e-4 * np.abs(whole.logits).max())


@pytest.mark.parametrize(
    ("name", "shape", "classes", "published"),
    [
        ("resnet-18", (32, 32, 3), 10, 11_173_962),
        ("resnet-34", (32, 32, 3), 10, 21_282_122),
        ("resnet-50", (32, 32, 3), 10, 23_520_842),
        ("resnet-18-imagenet", (64, 64, 3), 1000, 11_689_512),
        ("resnet-34-imagenet", (64, 64, 3), 1000, 21_797_672),
        ("resnet-50-imagenet", (64, 64, 3), 1000, 25_557_032),
        ("vgg-11", (32, 32, 3), 10, 9_231_114 - 2752),  # published with biases in front of batch normalization
        ("vgg-16", (32, 32, 3), 10, 14_728_266 - 4224),
        ("mobilenet-v2", (32, 32, 3), 10, 2_236_682),
        ("mobilenet-v2-imagenet", (64, 64, 3), 1000, 3_504_872),
        # at 224 pixels, with 196 positions where these have 16
        ("vit-tiny-16", (64, 64, 3), 1000, 5_717_416 - (196 - 16) * 192),
        ("vit-small-16", (64, 64, 3), 1000, 22_050_664 - (196 - 16) * 384),
    ],
)
def test_published_parameter_counts(name, shape, classes, published):
    network = networks.shapes(name, classes=classes, shape=shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(network.params)) == published


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 24, 3), (64, 64, 3)])
def test_sizes(name, shape):
    network = networks.shapes(name, classes=7, shape=shape)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    result = jax.eval_shape(lambda network, images: network(images), network, images)
    assert result.logits.shape == (2, 7) and result.embedding.shape == (2, network.params["fc"]["kernel"].shape[0])
    assert all(stage.ndim == 4 and min(stage.shape) >= 1 for stage in result.stages)


@pytest.mark.parametrize("name", ["resnet-18", "resnet-18-imagenet", "vgg-11", "mobilenet-v2", "vit-nano-4"])
def test_half_precision_computes_in_it_and_keeps_the_rest_in_float32(name):
    network = networks.shapes(name, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(network.variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    result = jax.eval_shape(lambda network, images: network(images, "batch"), network, images)
    assert all(stage.dtype == jnp.bfloat16 for stage in result.stages)
    assert result.logits.dtype == result.embedding.dtype == jnp.float32
    assert all(tap.mean.dtype == jnp.float32 for tap in result.batch_norm)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 5, 3, 2), (2, 1, 4, 2)])
def test_maxima_of_2_by_2_and_their_derivatives(shape):
    x = jnp.asarray(np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 7.0, jnp.float32)
    rows, columns = (min(2, side) for side in shape[1:3])
    height, width = shape[1] // rows, shape[2] // columns
    expected = np.empty((shape[0], height, width, shape[3]))
    for row in range(height):
        for column in range(width):
            cut = x[:, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
            expected[:, row, column] = np.asarray(cut).max(axis=(1, 2))
    np.testing.assert_array_equal(vgg._halve(x), expected.astype(np.float32))
    check_grads(jax.jit(lambda x: jnp.sin(vgg._halve(x))), (x,), order=2, modes=["rev"], rtol=1e-2, atol=1e-2)


def test_the_gradient_of_a_maximum_is_finite_in_a_compiled_network():
    """jnp.max over an axis has a NaN here: its gradient looks for values that equal a maximum computed apart."""
    network, images = networks.network("vgg-11", 5), networks.images(0, 2)
    gradient = jax.jit(jax.grad(lambda x, network: jnp.sum(network(x).logits)))
    for step in (-1e-3, 1e-3):
        assert np.isfinite(gradient(images + step * networks.images(1, 2), network)).all()


def test_second_derivatives_through_a_transformer():
    """Self-Retrospection differentiates a gradient in reverse."""
    module = vit.Block(6, 2, jnp.dtype("float32"))
    x = networks.images(0, 2, (1, 3, 6))
    variables = networks.randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), x, {})))
    check_grads(jax.jit(lambda x: module.apply(variables, x, {})), (x,), order=2, modes=["rev"], rtol=3e-2, atol=3e-2)


def test_absorb_without_batch_normalization_is_nothing():
    network = networks.network("vit-nano-4")
    assert network.absorb(forward(network, networks.images(), "batch")) is network


def test_whoever_needs_batch_normalization_can_ask():
    networks.shapes("vgg-11").require_batch_norm("defense clp")
    with pytest.raises(ValueError, match=r"^defense clp: needs a network with batch normalization, .* has none$"):
        networks.shapes("vit-nano-4").require_batch_norm("defense clp")


@pytest.mark.parametrize("pair", [("resnet-18", "resnet-34"), ("resnet-18", "mobilenet-v2"), ("wrn-16-1", "wrn-40-2")])
def test_attention_between_networks_of_equal_stages(pair):
    losses.check_attention_transfer(*(networks.shapes(name, shape=(32, 32, 3)) for name in pair))


def test_attention_between_networks_of_other_stages_is_refused_up_front():
    student, teacher = (networks.shapes(name, shape=(32, 32, 3)) for name in ("wrn-16-1", "resnet-18"))
    message = "student's are 32×32, 16×16, 8×8 pixels, the teacher's 32×32, 16×16, 8×8, 4×4; .* or student.attention 0"
    with pytest.raises(ValueError, match=message) as error:
        losses.check_attention_transfer(student, teacher)
    assert "\n" not in str(error.value)


def test_patches_must_fit():
    with pytest.raises(ValueError, match=r"input shape \(30, 32, 3\): patches of 4 pixels need multiples of 4"):
        networks.shapes("vit-nano-4", shape=(30, 32, 3))


@pytest.mark.parametrize("name", ["resnet-20", "resnet-18-", "vgg-13", "mobilenet-v3", "vit-nano-1", "vit-huge-4"])
def test_unknown_architectures(name):
    with pytest.raises(ValueError, match=f"unknown architecture {re.escape(repr(name))}: allowed are wrn-D-W .*vit-"):
        models.build(name, 10)
