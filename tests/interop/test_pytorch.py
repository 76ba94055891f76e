"""State dicts that do not fit, and the way there and back; PyTorch itself is in models/test_wide_resnet_torch.py."""

import jax
import numpy as np
import pytest

from abd_jax.models import build
from tests.interop.wide_resnets import wide_resnet_from_torch, wide_resnet_to_torch, with_one
from tests.networks import network


@pytest.fixture(scope="module")
def wide():
    return network("wrn-10-2", classes=4, shape=(8, 8, 3))


@pytest.fixture
def state(wide):
    return wide_resnet_to_torch(wide.variables)


def test_names_shapes_and_values(wide, state):
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["block1.layer.0.convShortcut.weight"].shape == (32, 16, 1, 1)
    assert state["fc.weight"].shape == (4, 128)
    stage, stats = wide.params["block2_layer_0"], wide.variables["batch_stats"]["block2_layer_0"]
    np.testing.assert_array_equal(state["block2.layer.0.conv1.weight"][5, 7], stage["conv1"]["kernel"][:, :, 7, 5])
    np.testing.assert_array_equal(state["block2.layer.0.bn2.weight"], stage["bn2"]["scale"])
    np.testing.assert_array_equal(state["block2.layer.0.bn2.bias"], stage["bn2"]["bias"])
    np.testing.assert_array_equal(state["block2.layer.0.bn2.running_mean"], stats["bn2"]["mean"])
    np.testing.assert_array_equal(state["block2.layer.0.bn2.running_var"], stats["bn2"]["var"])


@pytest.mark.parametrize("name, channels", [("wrn-10-2", 3), ("wrn-16-1", 1)])
def test_there_and_back(name, channels):
    ours = network(name, classes=4, shape=(8, 8, channels))
    back = wide_resnet_from_torch(ours.module, wide_resnet_to_torch(ours.variables))
    assert jax.tree.structure(back) == jax.tree.structure(dict(ours.variables))
    jax.tree.map(np.testing.assert_array_equal, back, dict(ours.variables))


def test_counters_and_other_precisions_are_taken(wide, state):
    state = {name: value.astype(np.float64) for name, value in state.items()}
    state |= {"bn1.num_batches_tracked": np.int64(3), "block1.layer.0.bn1.num_batches_tracked": np.int64(3)}
    back = wide_resnet_from_torch(wide.module, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float32)}


def test_the_values_are_copies(wide, state):
    back = wide_resnet_from_torch(wide.module, state)
    before = np.array(back["params"]["bn1"]["scale"])
    state["bn1.weight"][:] = 0
    np.testing.assert_array_equal(back["params"]["bn1"]["scale"], before)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def replaced(name, change):
    return lambda state: state | {name: change(state[name])}


@pytest.mark.parametrize(
    "broken, message",
    [
        (without("fc.bias"), r"no WRN-10-2 with 4 classes: missing fc\.bias$"),
        (without("block1.layer.0.convShortcut.weight"), r"missing block1\.layer\.0\.convShortcut\.weight"),
        (without("bn1.running_var"), r"missing bn1\.running_var"),
        (lambda state: {}, r"missing block1\..* and \d+ more"),
        (lambda state: state | {"conv1.bias": np.zeros(16)}, r"left over conv1\.bias"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, "missing block1"),
        (replaced("fc.weight", np.transpose), r"fc\.weight has shape \(128, 4\): .* needs \(4, 128\)"),
        (replaced("conv1.weight", lambda x: x.transpose(2, 3, 1, 0)), r"conv1\.weight has shape"),
        (replaced("conv1.weight", lambda x: x[0]), r"conv1\.weight has shape"),
        (replaced("bn1.weight", with_one(np.nan)), r"bn1\.weight has 1 value\(s\) that are not finite"),
        (replaced("bn1.running_mean", with_one(np.inf)), r"bn1\.running_mean has 1 value"),
        (replaced("bn1.running_var", with_one(-1.0)), r"bn1\.running_var has negative values"),
        (replaced("fc.bias", lambda x: x.astype(complex)), r"fc\.bias has dtype complex128"),
        (replaced("fc.bias", lambda x: x.astype(str)), r"fc\.bias has dtype"),
    ],
)
def test_what_does_not_fit_is_named(wide, state, broken, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet_from_torch(wide.module, broken(state))


@pytest.mark.parametrize(
    "name, message", [("wrn-16-2", "missing block1.layer.1"), ("wrn-10-1", "left over"), ("wrn-10-3", "has shape")]
)
def test_another_architecture_is_refused(state, name, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet_from_torch(build(name, 4), state)


def test_another_number_of_classes_is_refused(state):
    with pytest.raises(ValueError, match=r"fc\.bias has shape \(4,\): WRN-10-2 with 5 classes needs \(5,\)"):
        wide_resnet_from_torch(build("wrn-10-2", 5), state)
