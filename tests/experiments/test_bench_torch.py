"""What the bench times in PyTorch computes what our steps compute: losses and gradients on equal weights and images."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import losses
from abd_jax.defenses import self_retrospection, shuffling_vaccine
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.models import Generator
from abd_jax.screening import accept_all
from abd_jax.synthesis import cmi, inversion
from abd_jax.synthesis.cmi import CMIConfig
from abd_jax.synthesis.deep_inversion import DeepInversionConfig
from tests.interop.wide_resnets import wide_resnet_to_torch
from tests.models.test_wide_resnet_torch import ours, torch_network
from tests.networks import MEAN, STD, images, randomized

pytestmark = [pytest.mark.torch, pytest.mark.optax]
torch = pytest.importorskip("torch")

SIDE, BATCH = 8, 6


@pytest.fixture(scope="module")
def pair():
    """Teacher WRN-10-2 and student WRN-10-1: PyTorch's and ours."""
    theirs = [torch_network(10, width, 3).eval() for width in (2, 1)]
    return *theirs, *(ours(network, 10, width, 3, SIDE) for network, width in zip(theirs, (2, 1), strict=True))


def standardized(batch):
    values = (np.asarray(batch) - np.asarray(MEAN[3])) / np.asarray(STD[3])
    return torch.tensor(values, dtype=torch.float32).permute(0, 3, 1, 2)


def batch(seed=0):
    return images(seed, BATCH, (SIDE, SIDE, 3))


@pytest.mark.parametrize("output", ["sigmoid", "standardized"])
def test_generators_give_the_same_images(output):
    from experiments.bench.torch_networks import Generator as Theirs

    module = Generator((SIDE, SIDE, 3), MEAN[3], STD[3], 4, output=output)
    latent = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 5)), jnp.float32)
    params = randomized(jax.eval_shape(module.init, jax.random.key(0), latent))["params"]
    network = Theirs(5, SIDE, sigmoid=output == "sigmoid", features=4).train()
    state = {}
    for index, name in enumerate(("conv1", "conv2", "conv3")):
        state[f"{name}.weight"] = np.transpose(params[f"Conv_{index}"]["kernel"], (3, 2, 0, 1))
    for index, name in enumerate(("bn", "bn1", "bn2", "last")[: len(params) - 4]):
        state[f"{name}.weight"], state[f"{name}.bias"] = params[f"BatchNorm_{index}"].values()
        if next(iter(params[f"BatchNorm_{index}"])) == "bias":
            state[f"{name}.weight"], state[f"{name}.bias"] = state[f"{name}.bias"], state[f"{name}.weight"]
    order = np.arange(4 * (SIDE // 4) ** 2).reshape(SIDE // 4, SIDE // 4, 4).transpose(2, 0, 1).ravel()
    state["linear.weight"] = params["Dense_0"]["kernel"].T[order]
    state["linear.bias"] = params["Dense_0"]["bias"][order]
    state = {name: torch.tensor(np.asarray(value)) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [name for name in missing if "running" not in name and "tracked" not in name]
    with torch.no_grad():
        theirs = network(torch.tensor(np.asarray(latent)))
    mine = module.apply({"params": params}, latent)
    mine = torch.tensor(np.asarray(mine)).permute(0, 3, 1, 2) if output == "sigmoid" else standardized(mine)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_generator_loss_with_the_vaccine(pair):
    from experiments.bench import torch_steps

    teacher, student, our_teacher, our_student = pair
    config = VaccineConfig(copies=2, kernels=3)
    vaccine = shuffling_vaccine.undecided(jax.random.key(1), our_teacher, config).replace(enabled=jnp.ones(()))
    copies = []
    for copy in range(config.copies):
        shuffled = shuffling_vaccine.shuffle(our_teacher, vaccine.permutations, copy)
        network = torch_network(10, 2, 3).eval()
        state = {name: torch.tensor(value) for name, value in wide_resnet_to_torch(shuffled.variables).items()}
        network.load_state_dict(state, strict=False)
        copies.append(network)
    forward = our_teacher(batch())
    apart = losses.kl_divergence(forward.logits, our_student(batch()).logits).mean() / forward.logits.shape[-1]
    screening = shuffling_vaccine.generator_screen(config, vaccine, our_teacher)(batch(), forward)
    for own, others in ((-apart, []), (screening.penalty - apart, copies)):
        with torch.no_grad():
            theirs = torch_steps.generator_loss(standardized(batch()), teacher, student, others)
        np.testing.assert_allclose(own, theirs, rtol=1e-4)
    assert screening.penalty != 0


def test_student_loss(pair):
    from experiments.bench import torch_steps

    teacher, student, our_teacher, our_student = pair
    theirs = torch_steps.student_loss(standardized(batch()), teacher, student).item()
    forwards = our_teacher(batch()), our_student(batch())
    apart = losses.kl_divergence(forwards[0].logits, forwards[1].logits) / forwards[0].logits.shape[-1]
    maps = [tuple(map(losses.attention_map, forward.stages)) for forward in forwards]
    mine = jnp.mean(apart + 250 * losses.attention_transfer(maps[1], maps[0]))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_shuffled_copies_differ_in_the_inputs_of_the_last_kernels(pair):
    from experiments.bench import torch_steps

    teacher = pair[0]
    for network in torch_steps.shuffled_copies(teacher, 2, 3):
        before, after = teacher.state_dict(), network.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {f"block3.layer.0.{name}.weight" for name in ("conv1", "conv2", "convShortcut")}
        for name in changed:
            columns = [sorted(map(tuple, w[name].transpose(0, 1).flatten(1).tolist())) for w in (before, after)]
            assert columns[0] == columns[1]


def test_retrospection_finds_the_same_perturbation_and_gradient(pair):
    from experiments.bench import torch_steps

    teacher, student, our_teacher, our_student = pair
    config = RetrospectionConfig(perturb="teacher", norm="running", sigma=1.0, ascent_steps=3, iterations=2)
    ascent = self_retrospection.begin_ascent(
        config, jax.random.key(0), our_student, our_teacher, batch(), jnp.zeros(batch().shape[1:]), 0
    )
    start = torch.tensor(np.asarray(ascent.delta)).permute(2, 0, 1)
    step = jax.jit(self_retrospection.ascend, static_argnums=0)
    for _ in range(config.ascent_steps):
        ascent = step(config, ascent, our_student, our_teacher)
    delta = torch_steps.ascend(teacher, standardized(batch()), start, steps=3)
    np.testing.assert_allclose(ascent.delta, delta.permute(1, 2, 0), rtol=1e-3, atol=1e-4)
    value, gradients = torch_steps.hypergradient(student, standardized(batch()), delta, iterations=2)
    unlearn = jax.jit(self_retrospection.unlearn, static_argnums=0)
    logits = our_teacher(batch()).logits
    mine, metrics = unlearn(config, jax.random.key(1), ascent.delta, our_student, batch(), logits)
    np.testing.assert_allclose(metrics["retrospection/divergence"], value, rtol=1e-3)
    named = wide_resnet_to_torch({**our_student.variables, "params": mine})
    for (name, _), theirs in zip(student.named_parameters(), gradients, strict=True):
        scale = theirs.abs().max().item()
        np.testing.assert_allclose(named[name], theirs, atol=5e-3 * scale, err_msg=name)


def test_deep_inversion_loss(pair):
    from experiments.bench import torch_steps

    teacher = pair[2]
    network = torch_network(10, 2, 3).eval()  # its own: hooks stay
    read, labels = torch_steps.taps(network), np.arange(BATCH) % 7
    with torch.no_grad():
        theirs = torch_steps.deep_inversion_loss(standardized(batch()), torch.tensor(labels), network, read)
    config = DeepInversionConfig()
    loss, _ = inversion.inversion_loss(config, batch(), jnp.asarray(labels), teacher, teacher, accept_all)
    moved = (batch() - jnp.asarray(MEAN[3])) / jnp.asarray(STD[3])
    np.testing.assert_allclose(loss + config.total_variation * losses.total_variation(moved), theirs, rtol=1e-4)


def test_cmi_loss(pair):
    from experiments.bench import torch_steps

    _, student, teacher, our_student = pair
    network = torch_network(10, 2, 3).eval()
    read, labels = torch_steps.taps(network), np.arange(BATCH) % 7
    config = CMIConfig(head=5)
    features = [cmi.instance_means(teacher(view)) for view in (batch(0), batch(1))]
    width = features[0].shape[-1]
    negatives = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, width)), jnp.float32)
    variables = jax.eval_shape(cmi.Head(5).init, jax.random.key(0), features[0])
    head = randomized(variables)["params"]
    theirs_head = torch_steps.Head(width, 5)
    with torch.no_grad():
        for index, name in ((0, "Dense_0"), (2, "Dense_1")):
            theirs_head[index].weight.copy_(torch.tensor(np.asarray(head[name]["kernel"]).T))
            theirs_head[index].bias.copy_(torch.tensor(np.asarray(head[name]["bias"])))
        theirs = torch_steps.cmi_loss(
            standardized(batch(0)),
            standardized(batch(1)),
            torch.tensor(labels),
            torch.tensor(np.asarray(negatives)).flatten(1),
            network,
            student,
            theirs_head,
            read,
        )
    loss, _ = inversion.inversion_loss(config, batch(0), jnp.asarray(labels), teacher, our_student, accept_all)
    contrast = cmi.contrast(config, head, features[1], features[0], negatives, jnp.ones(4, bool))
    np.testing.assert_allclose(loss + config.contrast * contrast, theirs, rtol=1e-4)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("training_step", ("wrn-10-1", 4, SIDE)),
        ("zskt_cycle", ("none", "wrn-10-1", "wrn-10-1", 4, SIDE, 2)),
        ("zskt_cycle", ("sv", "wrn-10-1", "wrn-10-1", 4, SIDE, 2)),
        ("zskt_cycle", ("abd", "wrn-10-1", "wrn-10-1", 4, SIDE, 1)),
        ("deep_inversion_iteration", ("wrn-10-1", 4, SIDE)),
        ("cmi_iteration", ("wrn-10-1", "wrn-10-1", 4, SIDE)),
    ],
)
def test_steps_learn_something(name, arguments):
    """Two calls give finite and different losses."""
    from experiments.bench import torch_steps

    random.seed(0)
    step = getattr(torch_steps, name)(*arguments)
    first, second = step(), step()
    assert np.isfinite([first, second]).all()
    assert first != second
