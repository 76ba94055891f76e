"""Our Wide ResNet against a PyTorch one with the same weights: logits, the three stage activations, checkpoint keys."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.models import Network, build
from tests.interop.wide_resnets import wide_resnet_from_torch, wide_resnet_to_torch
from tests.networks import MEAN, STD, images

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

NETWORKS = [(16, 1, 3, 16), (16, 2, 3, 16), (40, 2, 3, 8), (10, 1, 1, 12)]


def torch_network(depth, width, channels):
    """Random weights, and statistics, scales and biases away from their start."""
    from experiments.bench.torch_networks import WideResNet

    torch.manual_seed(0)
    network = WideResNet(depth, width, 7, channels)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, 0.0, 0.3)
    return network


def arrays(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def ours(network, depth, width, channels, side):
    module = build(f"wrn-{depth}-{width}", 7)
    variables = wide_resnet_from_torch(module, arrays(network))
    return Network(variables, module, MEAN[channels], STD[channels], (side, side, channels))


@pytest.mark.parametrize("norm", ["running", "batch"])
@pytest.mark.parametrize("depth, width, channels, side", NETWORKS)
def test_logits_and_stages(depth, width, channels, side, norm):
    network = torch_network(depth, width, channels).train(norm == "batch")
    batch = images(batch=4, shape=(side, side, channels))
    forward = jax.jit(lambda net, batch: net(batch, norm))(ours(network, depth, width, channels, side), batch)
    normalized = (np.asarray(batch) - np.asarray(MEAN[channels])) / np.asarray(STD[channels])
    with torch.no_grad():
        logits, stages = network(torch.tensor(normalized, dtype=torch.float32).permute(0, 3, 1, 2))
    assert len(forward.stages) == len(stages) == 3
    for value, expected in zip(forward.stages, stages, strict=True):
        expected = expected.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(forward.logits, logits.numpy(), rtol=1e-4, atol=1e-4)


def test_running_statistics_move_alike():
    """`absorb` is PyTorch's momentum 0.1, but for the variance, which PyTorch corrects by n / (n − 1)."""
    network = torch_network(10, 1, 1).train()
    before = ours(network, 10, 1, 1, 12)
    batch = images(batch=4, shape=(12, 12, 1))
    normalized = (np.asarray(batch) - np.asarray(MEAN[1])) / np.asarray(STD[1])
    with torch.no_grad():
        network(torch.tensor(normalized, dtype=torch.float32).permute(0, 3, 1, 2))
    start = wide_resnet_to_torch(before.variables)
    moved = wide_resnet_to_torch(before.absorb(before(batch, "batch")).variables)
    for bn, pixels in (("block1.layer.0.bn1", 12**2), ("bn1", 3**2)):
        np.testing.assert_allclose(
            moved[f"{bn}.running_mean"], arrays(network)[f"{bn}.running_mean"], rtol=1e-4, atol=1e-5
        )
        kept = 0.9 * start[f"{bn}.running_var"]
        unbiased = arrays(network)[f"{bn}.running_var"] - kept
        count = len(batch) * pixels
        np.testing.assert_allclose(moved[f"{bn}.running_var"], kept + unbiased * (count - 1) / count, rtol=1e-4)


@pytest.mark.parametrize("depth, width, channels, side", NETWORKS)
def test_checkpoint_keys(depth, width, channels, side):
    """The names of the published checkpoints; what we write is what PyTorch loads."""
    network = torch_network(depth, width, channels)
    state = arrays(network)
    owner = r"block[123]\.layer\.\d+\.(bn1|conv1|bn2|conv2|convShortcut)"
    assert all(re.match(rf"({owner}|conv1|bn1|fc)\.\w+$", name) for name in state)
    back = wide_resnet_to_torch(wide_resnet_from_torch(build(f"wrn-{depth}-{width}", 7), state))
    assert set(back) == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])
    copy = torch_network(depth, width, channels)
    copy.load_state_dict({name: torch.tensor(value) for name, value in back.items()})


def test_the_training_step_learns():
    """What the bench times is a training step: the loss falls."""
    from experiments.bench.torch_steps import training_step

    step = training_step("wrn-10-1", batch=16, side=8)
    assert step() > [step() for _ in range(20)][-1]
    assert jnp.isfinite(step())
