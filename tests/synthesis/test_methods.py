"""Every registered method: it keeps the protocol, and what it optimizes becomes what the teacher knows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import synthesis
from abd_jax.synthesis import Task
from abd_jax.synthesis.bank import BankConfig
from tests import networks
from tests.synthesis import small

pytestmark = pytest.mark.optax

BATCH, UPDATES = 24, 25
BANK = BankConfig(capacity=4 * BATCH, crop=0, flip=False)
INVERSION = {"batch": BATCH, "updates": UPDATES, "bank": BANK, "batch_norm": 2.0, "one_hot": 2.0, "adversarial": 0.0}
CONFIGS = {
    "zskt": synthesis.ZSKTConfig(latent=5, features=4),
    "deep_inversion": synthesis.DeepInversionConfig(**INVERSION),
    "cmi": synthesis.CMIConfig(
        latent=8, features=8, learning_rate=0.02, head=4, memory=2 * BATCH, negatives=8, crop=0, flip=False, **INVERSION
    ),
    "ood": synthesis.OODConfig(),
    "dafl": synthesis.DAFLConfig(latent=8, features=8, learning_rate=0.02, activation=0.0, balance=2.0),
    "dfq": synthesis.DFQConfig(latent=8, features=8, learning_rate=0.02, adversarial=0.0, one_hot=2.0, balance=2.0),
    "dfad": synthesis.DFADConfig(latent=5, features=4),
    "fast": synthesis.FastConfig(
        latent=8, features=8, learning_rate=0.02, latent_learning_rate=0.05, momentum=0.0, reset=0, **INVERSION
    ),
    "nayer": synthesis.NAYERConfig(noise=8, features=8, learning_rate=0.02, momentum=0.0, **INVERSION),
}
SURE = ("deep_inversion", "cmi", "dafl", "dfq", "fast", "nayer")
"""Methods that ask the teacher to be sure; ZSKT and DFAD only ask it to differ from the student, OOD asks nothing."""
TRUE_TO_STATISTICS = tuple(name for name in SURE if name != "dafl")


def make(name):
    return synthesis.create(CONFIGS[name], small.task(batch=BATCH, cycles=4 * UPDATES))


def seen(own, state):
    """Mean confidence, and distance from the teacher's statistics, of images as the student gets them."""
    teacher, _ = small.networks_at_odds()
    images = own.sample(jax.random.key(9), state, 96)
    forward = small.forward(teacher, images)
    shifted = np.exp(forward.logits - forward.logits.max(-1, keepdims=True))
    return (shifted.max(-1) / shifted.sum(-1)).mean(), small.distance(forward.mean, forward.variance, teacher)


@pytest.mark.parametrize("name", SURE)
def test_the_teacher_becomes_surer_and_sees_its_own_statistics(name):
    own = make(name)
    before = own.init(jax.random.key(0))
    after, history = small.run(own, before, 2 * UPDATES)
    (confidence, distance), (confidence_after, distance_after) = seen(own, before), seen(own, after)
    assert confidence_after > confidence + 0.05, (confidence, confidence_after)
    if name in TRUE_TO_STATISTICS:
        assert distance_after < 0.8 * distance, (distance, distance_after)
    assert all(np.isfinite(value) for row in history for value in row.values())


@pytest.mark.parametrize("name", ["zskt", "dfad"])
def test_what_looks_for_disagreement_finds_sure_answers_unless_held_to_the_statistics(name):
    """Their published losses ask for neither: confidence comes with disagreement, the statistics by a term of ours."""
    free, held = (dataclasses.replace(CONFIGS[name], learning_rate=0.02, batch_norm=weight) for weight in (0.0, 2.0))
    moved = {}
    for config in (free, held):
        own = synthesis.create(config, small.task(batch=BATCH, cycles=4 * UPDATES))
        before = own.init(jax.random.key(0))
        after, history = small.run(own, before, 2 * UPDATES)
        moved[config] = (*seen(own, before), *seen(own, after))
        if config is free:
            assert history[-1]["generator/disagreement"] > 1.4 * history[0]["generator/disagreement"]
    confidence, _, confidence_after, _ = moved[free]
    assert confidence_after > confidence + 0.05, (confidence, confidence_after)
    _, distance, _, distance_after = moved[held]
    assert distance_after < 0.8 * distance, (distance, distance_after)


def test_ood_optimizes_nothing():
    """So neither the teacher's confidence nor its statistics can move: a photograph is what it is."""
    own = make("ood")
    before = own.init(jax.random.key(0))
    after, _ = small.run(own, before, 2)
    assert seen(own, before) == seen(own, after)


def test_every_method_is_tried_here():
    assert set(CONFIGS) == set(synthesis.METHODS)


@pytest.mark.parametrize("name", synthesis.METHODS)
def test_a_method_keeps_the_protocol(name):
    """One update keeps the state's structure, shapes and types, so it may be scanned, donated and checkpointed."""
    own = make(name)
    assert isinstance(own, synthesis.Synthesizer)
    assert hash(own) == hash(make(name)), "static under jit"
    assert synthesis.method_of(own.config) == name
    state = jax.eval_shape(own.init, jax.random.key(0)) if name != "ood" else own.init(jax.random.key(0))
    new, metrics = jax.eval_shape(
        lambda key, state, teacher, student: own.update(key, state, teacher, student, small.accept_all),
        jax.random.key(1),
        state,
        *small.networks_at_odds(),
    )
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for old_leaf, new_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert (old_leaf.shape, old_leaf.dtype) == (new_leaf.shape, new_leaf.dtype)
        assert not getattr(new_leaf, "weak_type", False)
    assert all(value.shape == () for value in metrics.values())
    images = jax.eval_shape(lambda key, state: own.sample(key, state, 5), jax.random.key(2), state)
    assert (images.shape, images.dtype) == ((5, *small.SHAPE), jnp.float32)


FAST = {"latent": 256, "batch": 256, "batch_norm": 10, "one_hot": 0.4, "adversarial": 1.1, "momentum": 0.9}
PUBLISHED = {  # SPEC §2 and PEERS §5
    "zskt": {"latent": 100, "updates": 1, "learning_rate": 1e-3, "clip": 5, "temperature": 1, "batch_norm": 0},
    "cmi": {
        **{"latent": 256, "updates": 200, "batch": 256, "learning_rate": 1e-3, "adversarial": 0.5, "batch_norm": 1},
        **{"one_hot": 1, "contrast": 0.8, "temperature": 0.1, "negatives": 4096, "memory": 40_960},
    },
    "ood": {"updates": 0, "cutmix": 0.25},
    "deep_inversion": {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.99, "updates": 2000, "adversarial": 0},
    "dafl": {"latent": 512, "adversarial": 0, "batch_norm": 0},
    "dfq": {"latent": 256},
    "dfad": {"latent": 256, "divergence": "l1", "adversarial": 1},
    "fast": {**FAST, "updates": 5, "learning_rate": 3e-3, "latent_learning_rate": 0.01, "warm_up": 20, "reset": 120},
    "nayer": {
        **{"noise": 1000, "batch": 400, "updates": 30, "learning_rate": 4e-3, "batch_norm": 10, "momentum": 0.9},
        **{"one_hot": 0.5, "adversarial": 1.33, "warm_up": 200, "rebuild": 20},  # in batches, 10 an epoch then 2
    },
}


@pytest.mark.parametrize("name", synthesis.METHODS)
def test_published_settings_are_the_defaults_and_can_be_made(name):
    config = synthesis.METHODS[name].config()
    assert {field: getattr(config, field) for field in PUBLISHED[name]} == PUBLISHED[name]
    if name != "ood":  # whose patches cannot be traced
        own = synthesis.create(config, small.task(batch=256))
        images = jax.eval_shape(lambda one, two: own.sample(two, own.init(one), 256), *map(jax.random.key, (0, 1)))
        assert images.shape == (256, *small.SHAPE)


@pytest.mark.parametrize("name", ["deep_inversion", "fast", "nayer"])
def test_without_its_batch_norm_term_a_method_takes_a_teacher_that_has_none(name):
    """What is left is what the literature did before: DeepDream, and class-conditional generators."""
    teacher = networks.shapes("vit-nano-4", classes=small.CLASSES)
    task = Task.of(teacher, batch=BATCH, cycles=20, classes=("0", "1", "2"))
    with pytest.raises(
        ValueError, match=f"method {name} reads the teacher's batch normalization, and this teacher has"
    ):
        synthesis.create(CONFIGS[name], task)
    own = synthesis.create(dataclasses.replace(CONFIGS[name], batch_norm=0.0), task)
    state = jax.eval_shape(own.init, jax.random.key(0))
    new, metrics = jax.eval_shape(
        lambda key, state, teacher: own.update(key, state, teacher, teacher, small.accept_all),
        jax.random.key(1),
        state,
        teacher,
    )
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert "generator/confidence" in metrics


def _weighty(images, forward):
    weights = jnp.where(jnp.arange(images.shape[0]) < 2, 1.0, 0.0)
    return small.accept_all(images, forward).replace(weights=weights)


def _costly(images, forward):
    return small.accept_all(images, forward).replace(penalty=jnp.square(images).mean() + forward.logits[:, 0].mean())


@pytest.mark.parametrize("screen", [_weighty, _costly], ids=["weights", "penalty"])
@pytest.mark.parametrize("name", [name for name in synthesis.METHODS if name != "ood"])  # which optimizes no images
def test_a_defenses_weights_and_penalty_reach_every_method(name, screen):
    config = dataclasses.replace(CONFIGS[name], **({"adversarial": 1.0} if name in ("deep_inversion", "dfq") else {}))
    own = synthesis.create(config, small.task(batch=BATCH))
    state = own.init(jax.random.key(0))
    plain, screened = (small.update(own, state, 3, given)[0] for given in (small.accept_all, screen))
    apart = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(screened), strict=True)
        if a.dtype == jnp.float32
    ]
    assert max(apart) > 1e-6


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method 'cmj' \(did you mean 'cmi'\?\): allowed are zskt, deep_inversion"):
        synthesis.lookup("cmj")
    assert synthesis.lookup("cmi").config is synthesis.CMIConfig
