"""Self-Retrospection with an inverted trigger in place of δ: what is pasted on whom, and the hunt in the student."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.defenses import inverted_retrospection, trigger_inversion
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.trigger_inversion import Backdoor, InversionConfig, Trigger
from tests import networks


def key(seed=0):
    return jax.random.key(seed)


def test_the_trigger_is_pasted_on_a_portion_of_the_batch_and_thinned():
    rng = np.random.default_rng(2)
    trigger = Trigger(jnp.asarray(rng.uniform(0.3, 1, (16, 16, 1)), jnp.float32), jnp.ones((16, 16, 1)))
    images = networks.images(4, 32, (16, 16, 1)) * 0.5
    config = RetrospectionConfig(perturb="inverted", portion=0.25, drop=0.5)
    backdoor = Backdoor(jnp.int32(3), trigger, trigger_inversion.begin(InversionConfig(), (16, 16, 1)))
    pasted = np.asarray(inverted_retrospection.paste_some(config, key(1), backdoor, images))
    changed = ~np.isclose(pasted, images, atol=1e-7)
    assert (changed.any((1, 2, 3))).sum() == 8
    whole = np.asarray(images) * (1 - np.asarray(trigger.mask)) + np.asarray(trigger.mask)
    np.testing.assert_allclose(pasted[changed], whole[changed], rtol=1e-6)
    share = changed[changed.any((1, 2, 3))].mean()
    assert 0.45 < share < 0.55  # 2048 pixels: 0.5 ± 4.5 standard deviations
    other = np.asarray(inverted_retrospection.paste_some(config, key(2), backdoor, images))
    assert np.abs(other - pasted).max() > 0.01


def test_every_second_image_gets_what_was_hunted_and_none_without_a_suspect():
    images = networks.images(4, 32, (16, 16, 1)) * 0.5
    white = Trigger(jnp.ones((16, 16, 1)), jnp.ones((16, 16, 1)))
    search = trigger_inversion.begin(InversionConfig(), (16, 16, 1))
    black = jax.tree.map(lambda leaf: jnp.full_like(leaf, 50.0), search.logits).replace(
        pattern=jnp.full((16, 16, 1), -50.0)
    )
    backdoor = Backdoor(jnp.int32(3), white, search.replace(logits=black))
    config = RetrospectionConfig(perturb="inverted", portion=0.25, drop=0.0, hunt=1)
    pasted = np.asarray(inverted_retrospection.paste_some(config, key(1), backdoor, images))
    assert ((pasted == 1).all((1, 2, 3))).sum() == 4
    assert ((pasted < 1e-6).all((1, 2, 3))).sum() == 4
    unsuspected = inverted_retrospection.paste_some(config, key(1), backdoor.replace(target=jnp.int32(-1)), images)
    np.testing.assert_array_equal(unsuspected, images)


@pytest.mark.optax
def test_a_hunt_looks_at_its_share_of_the_batch():
    student, images, inversion = networks.tiny(1), networks.images(4, 8, (4, 4, 1)), InversionConfig()
    config = RetrospectionConfig(perturb="inverted", hunt=1, ascent_share=0.5)
    backdoor = trigger_inversion.unknown(inversion, (4, 4, 1)).replace(target=jnp.int32(1))

    def found(images):
        hunted = inverted_retrospection.hunt(config, inversion, key(5), jnp.int32(0), backdoor, student, images)
        return np.asarray(hunted.hunt.optimizer[0].mu.mask)

    np.testing.assert_array_equal(found(images), found(jnp.concatenate([images[:4], 1 - images[4:]])))
    assert (found(images) != found(1 - images)).any()


@pytest.mark.optax
def test_a_hunt_leads_the_student_to_the_class_and_starts_afresh():
    student = networks.tiny(1)
    inversion = InversionConfig(images=8, sparsity=0.0)
    config = RetrospectionConfig(perturb="inverted", hunt=5, restart=2)
    images = networks.images(4, 8, (4, 4, 1))
    backdoor = trigger_inversion.unknown(inversion, (4, 4, 1)).replace(target=jnp.int32(1))

    def confidence(backdoor):
        trigger = jax.tree.map(jax.nn.sigmoid, backdoor.hunt.logits)
        answers = jax.nn.log_softmax(student(trigger_inversion.paste(trigger, images)).logits)
        return float(answers[:, 1].mean())

    before = confidence(backdoor)
    for step in range(10):
        backdoor = inverted_retrospection.hunt(config, inversion, key(5), jnp.int32(step), backdoor, student, images)
    assert confidence(backdoor) > before
    assert int(backdoor.hunt.optimizer[0].count) == 10
    backdoor = inverted_retrospection.hunt(config, inversion, key(5), jnp.int32(10), backdoor, student, images)
    assert int(backdoor.hunt.optimizer[0].count) == 1
