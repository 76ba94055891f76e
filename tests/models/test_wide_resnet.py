"""Wide ResNets: kernels, counts, and every number of a pass against float64 NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import models
from abd_jax.models import layers
from tests import networks, reference

forward = jax.jit(lambda network, images, norm: network(images, norm), static_argnums=2)
tail = jax.jit(lambda network, entry, activation: network.tail(entry, activation), static_argnums=1)

KERNELS_16_2 = (
    "conv1",
    "block1_layer_0/conv1",
    "block1_layer_0/conv2",
    "block1_layer_0/convShortcut",
    "block1_layer_1/conv1",
    "block1_layer_1/conv2",
    "block2_layer_0/conv1",
    "block2_layer_0/conv2",
    "block2_layer_0/convShortcut",
    "block2_layer_1/conv1",
    "block2_layer_1/conv2",
    "block3_layer_0/conv1",
    "block3_layer_0/conv2",
    "block3_layer_0/convShortcut",
    "block3_layer_1/conv1",
    "block3_layer_1/conv2",
)


def test_kernels_of_16_2_by_name():
    assert networks.shapes("wrn-16-2").module.kernels == KERNELS_16_2


def test_the_last_five_of_16_2_are_stage_3_with_its_shortcut():
    kernels = networks.shapes("wrn-16-2").module.kernels
    assert set(kernels[-5:]) == {name for name in kernels if name.startswith("block3")}
    assert "block3_layer_0/convShortcut" in kernels[-5:]


def test_the_last_five_of_40_2_are_the_end_of_stage_3_without_a_shortcut():
    assert networks.shapes("wrn-40-2").module.kernels[-5:] == (
        "block3_layer_3/conv2",
        "block3_layer_4/conv1",
        "block3_layer_4/conv2",
        "block3_layer_5/conv1",
        "block3_layer_5/conv2",
    )


@pytest.mark.parametrize(
    ("name", "blocks", "shortcuts"),
    [("wrn-10-1", 1, (2, 3)), ("wrn-16-1", 2, (2, 3)), ("wrn-16-2", 2, (1, 2, 3)), ("wrn-40-2", 6, (1, 2, 3))],
)
def test_kernels_and_normalizations_are_all_declared_in_forward_order(name, blocks, shortcuts):
    kernels, norms = ["conv1"], []
    for stage in (1, 2, 3):
        for block in range(blocks):
            prefix = f"block{stage}_layer_{block}"
            kernels += [f"{prefix}/conv1", f"{prefix}/conv2"]
            kernels += [f"{prefix}/convShortcut"] if block == 0 and stage in shortcuts else []
            norms += [f"{prefix}/bn1", f"{prefix}/bn2"]
    network = networks.shapes(name)
    assert network.module.kernels == tuple(kernels)
    assert network.module.batch_norms == (*norms, "bn1")
    leaves = set(reference_paths(network.variables["params"]))
    assert {path for path in leaves if path.endswith("/kernel")} == {f"{path}/kernel" for path in (*kernels, "fc")}
    assert {path for path in leaves if path.endswith("/scale")} == {f"{path}/scale" for path in (*norms, "bn1")}


def reference_paths(tree, prefix=""):
    for name, value in tree.items():
        yield from reference_paths(value, f"{prefix}{name}/") if hasattr(value, "items") else [f"{prefix}{name}"]


def parameters(depth, width, classes, channels):
    """The formula: stem, blocks, last normalization, classifier; convolutions have no bias."""
    total, inputs = 9 * channels * 16, 16
    for stage in range(3):
        features = 16 * width * 2**stage
        for _ in range((depth - 4) // 6):
            total += 2 * inputs + 9 * inputs * features + 2 * features + 9 * features**2
            total += inputs * features if inputs != features else 0
            inputs = features
    return total + 2 * inputs + (inputs + 1) * classes


@pytest.mark.parametrize(
    ("depth", "width", "published"),
    [
        (16, 1, 0.18e6),
        (16, 2, 0.69e6),
        (40, 1, 0.57e6),
        (40, 2, 2.2e6),
        (28, 10, 36.5e6),
        (10, 1, None),
        (22, 8, 17.2e6),
    ],
)
def test_parameter_counts(depth, width, published):
    network = networks.shapes(f"wrn-{depth}-{width}", classes=10, shape=(32, 32, 3))
    counted = sum(leaf.size for leaf in jax.tree.leaves(network.params))
    assert counted == parameters(depth, width, 10, 3)
    if published:
        assert counted == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("norm", ["running", "batch"])
@pytest.mark.parametrize(
    ("depth", "width", "shape"), [(10, 1, (8, 8, 1)), (10, 2, (9, 11, 3)), (16, 1, (8, 8, 3))], ids=str
)
def test_a_pass_against_numpy(depth, width, shape, norm):
    network = networks.network(f"wrn-{depth}-{width}", 1, shape=shape)
    images = networks.images(2, 4, shape)
    result = forward(network, images, norm)
    expected = reference.wide_resnet(network.variables, depth, width, images, network.mean, network.std, norm)
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(result.logits, expected.logits, **close)
    np.testing.assert_allclose(result.embedding, expected.embedding, **close)
    for name, own, theirs in (
        ("stage", result.stages, expected.stages),
        ("entry", result.entries, expected.entries),
        *((field, *([getattr(tap, field) for tap in taps] for taps in (result.batch_norm, expected.taps)))
          for field in ("mean", "variance", "image_mean")),
    ):  # fmt: skip
        assert len(own) == len(theirs)
        for index, (a, b) in enumerate(zip(own, theirs, strict=True)):
            np.testing.assert_allclose(a, b, err_msg=f"{name} {index}", **close)


def test_running_and_batch_statistics_give_other_logits():
    network, images = networks.network(), networks.images()
    running, batch = (forward(network, images, norm).logits for norm in ("running", "batch"))
    assert np.abs(running - batch).max() > 0.1
    alone = forward(network, images[2:3], "running").logits[0]
    np.testing.assert_allclose(running[2], alone, rtol=1e-4, atol=1e-5)  # running: an image stands for itself


@pytest.mark.parametrize(("name", "entry"), [("wrn-10-1", 0), ("wrn-10-1", 1), ("wrn-10-1", 2), ("wrn-16-2", 4)])
def test_tail_from_an_entry_is_the_rest_of_the_pass(name, entry):
    network, images = networks.network(name, 3), networks.images()
    whole = forward(network, images, "running")
    assert len(whole.entries) == len(network.module.block_names)
    rest = tail(network, entry, whole.entries[entry])
    assert rest.shape == (1, *whole.logits.shape)
    np.testing.assert_allclose(rest[0], whole.logits, rtol=1e-5, atol=1e-5)


def test_entry_of_a_kernel_is_its_block():
    module = networks.shapes("wrn-16-2").module
    entries = [module.entry_of(kernel) for kernel in module.kernels[1:]]
    assert entries == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    for wrong in ("conv1", "block4_layer_0/conv1", "fc"):
        with pytest.raises(ValueError, match=f"kernel '{wrong}' lies before every block"):
            module.entry_of(wrong)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 15), (17, 8), (28, 28), (32, 32), (33, 64), (64, 64)])
def test_sizes(height, width, channels):
    shape = (height, width, channels)
    network = networks.shapes("wrn-16-2", classes=7, shape=shape)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    result = jax.eval_shape(lambda network, images: network(images), network, images)
    assert result.logits.shape == (2, 7) and result.embedding.shape == (2, 128)
    sides = [(height, width)]
    for _ in range(2):
        sides.append(tuple((side + 1) // 2 for side in sides[-1]))
    assert [stage.shape for stage in result.stages] == [
        (2, *side, features) for side, features in zip(sides, (32, 64, 128), strict=True)
    ]
    assert len(result.batch_norm) == 13


@pytest.mark.parametrize(
    "name",
    [
        "wrn-16",
        "wrn-12-1",
        "wrn-4-1",
        "wrn-106-1",
        "wrn-16-0",
        "wrn-16-21",
        "resnet-16-2",
        "wrn-16-2x",
        "",
        "wrn--16-2",
    ],
)
def test_unknown_architectures(name):
    with pytest.raises(ValueError, match=f"unknown architecture {re.escape(repr(name))}: allowed are wrn-D-W"):
        models.build(name, 10)


@pytest.mark.parametrize("depth", [4, 9, 12])
def test_a_depth_that_is_not_6n_plus_4(depth):
    with pytest.raises(ValueError, match=f"depth must be 6n \\+ 4 .* got {depth}"):
        _ = models.WideResNet(depth=depth, width=1, num_classes=2).kernels


def test_names_in_capitals_are_understood():
    assert models.build("WRN-16-2", 10) == models.build("wrn-16-2", 10)


def test_the_gradient_through_a_permutation_is_the_gathers_own():
    """First and second order, against the transpose that JAX derives."""
    rng = np.random.default_rng(0)
    order = jnp.asarray(np.stack([rng.permutation(5) for _ in range(3)]), jnp.int32)
    x, weights = (jnp.asarray(rng.normal(size=(6, 2, 2, 5)), jnp.float32) for _ in range(2))

    def plain(x, order):
        copies = [copy[..., channels] for copy, channels in zip((x[0::3], x[1::3], x[2::3]), order, strict=True)]
        return jnp.stack(copies, axis=1).reshape(x.shape)

    def derivatives(permute):
        gradient = jax.grad(lambda x: jnp.sum(weights * jnp.sin(permute(x, order))))
        return permute(x, order), gradient(x), jax.grad(lambda x: jnp.vdot(gradient(x), x))(x)

    for ours, derived in zip(derivatives(layers.permute), derivatives(plain), strict=True):
        np.testing.assert_allclose(ours, derived, rtol=1e-6, atol=1e-6)
