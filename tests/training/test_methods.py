"""Rounds of data-free methods other than ZSKT: as dispatched from the host, and as one program."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import synthesis
from abd_jax.synthesis.bank import BankConfig
from abd_jax.training import dispatch
from abd_jax.training.config import StudentConfig
from abd_jax.training.distill import Distillation, distance
from tests import reference
from tests.training import small

pytestmark = pytest.mark.optax

BANK = BankConfig(capacity=16, crop=1, flip=False)
SETTINGS = {
    "deep_inversion": synthesis.DeepInversionConfig(updates=2, batch=8, bank=BANK),
    "ood": synthesis.OODConfig(),
    "fast": synthesis.FastConfig(latent=4, features=4, updates=2, batch=8, warm_up=0, bank=BANK),
    "dfad": synthesis.DFADConfig(latent=4, features=4),
}


def preset(method, **student):
    options = dict(cycles=1, updates=2) | student
    return dataclasses.replace(small.preset(**options), method=method, synthesis=SETTINGS[method])


def trained(preset, platform="cpu", defense="sv"):
    run = Distillation.make(preset, defense, small.teacher(), classes=tuple("0123456789"))
    state = run.init(small.key(3), small.teacher())
    rounds = dispatch.compile_rounds(run, small.key(3), state, small.teacher(), platform)
    before = jax.tree.map(np.asarray, state.student.variables)
    for step in range(preset.student.cycles):
        state, metrics = rounds[run.phase(step)](small.key(3), state, small.teacher())
    return before, state, metrics


@pytest.mark.parametrize("method", ["deep_inversion", "ood"])
def test_a_round_trains_the_student(method):
    before, state, metrics = trained(preset(method))
    assert all(np.isfinite(value) for value in metrics.values())
    moved = [
        np.abs(new - old).max()
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.student.variables), strict=True)
    ]
    assert min(moved) > 0 and state.step == 1
    if method != "ood":
        assert state.synthesizer.bank.written == 8
        assert "generator/suspicious" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_one_program_computes_what_the_host_dispatches(method):
    loss = {"loss": "l1", "optimizer": "sgd", "learning_rate": 0.01} if method == "dfad" else {"reduction": "sum"}
    own = preset(method, **loss)
    (_, host, seen), (_, device, told) = trained(own), trained(own, platform="tpu")
    chex.assert_trees_all_close(device.student.variables, host.student.variables, atol=1e-4, rtol=2e-4)
    chex.assert_trees_all_close(told, seen, atol=2e-4, rtol=5e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"loss": "l1"}, lambda t, s: np.abs(t - s).mean(-1)),
        ({"temperature": 1.0}, lambda t, s: reference.kl(t, s) / 5),
        ({"temperature": 4.0, "reduction": "sum"}, lambda t, s: reference.kl(t / 4, s / 4)),
        ({"temperature": 4.0, "temperature_squared": True}, lambda t, s: 16 * reference.kl(t / 4, s / 4) / 5),
    ],
)
def test_what_the_student_minimizes_against_numpy(options, expected):
    teacher, student = np.random.default_rng(0).normal(scale=3.0, size=(2, 7, 5))
    own = distance(StudentConfig(**options), jnp.float32(teacher), jnp.float32(student))
    np.testing.assert_allclose(own, expected(teacher, student), rtol=1e-4)


def test_a_method_and_another_methods_settings_do_not_go_together():
    with pytest.raises(ValueError, match="method 'cmi': the preset's synthesis settings are ZSKTConfig, of another"):
        dataclasses.replace(small.PRESET, method="cmi")
    assert small.PRESET.with_method("cmi").synthesis == synthesis.CMIConfig()
    assert small.PRESET.with_method("zskt") is small.PRESET
    with pytest.raises(ValueError, match=r"method 'cmj' \(did you mean 'cmi'\?\): allowed are zskt"):
        small.PRESET.with_method("cmj")


def test_every_update_has_images_of_its_own_where_the_method_says_so():
    run = Distillation.make(preset("ood"), "none", small.teacher())
    state = run.init(small.key(3), small.teacher())
    phase = run.phase(0)
    first, second = (dispatch.teach(run, phase, small.key(3), state, small.teacher(), np.int32(i))[0] for i in (0, 1))
    assert np.abs(np.asarray(first.images) - np.asarray(second.images)).max() > 0.1
    np.testing.assert_allclose(first.logits, small.teacher()(first.images).logits, rtol=1e-3, atol=1e-4)
