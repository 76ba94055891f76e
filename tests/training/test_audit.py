"""An examination of small networks: every sign, and what a student shares with its teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.defenses.trigger_inversion import InversionConfig
from abd_jax.training import audit
from abd_jax.training.audit import AuditConfig
from tests import networks

CONFIG = AuditConfig(
    batches=2, batch=8, inversion=InversionConfig(images=4, steps=2), vaccine=VaccineConfig(kernels=2, trials=2)
)


@pytest.mark.optax
def test_an_examination_measures_every_sign_and_a_copy_has_them_all():
    network = networks.network("wrn-10-1", classes=3)
    found = audit.examine(network, CONFIG)
    assert all(np.isfinite(value) for value in found.signs.values()) and not found.reasons
    assert found.masks.shape == (3, 8, 8, 1) and found.patterns.shape == (3, 8, 8, 1)
    assert found.signs["lipschitz"] == max(values.max() for values in found.channels.values())
    tails = [np.mean(values < values.mean() - 3 * values.std()) for values in found.log_kl]
    assert found.signs["tail"] == max(tails) and found.log_kl.shape[1] == 16
    assert 0 <= found.signs["agreement"] <= 1
    images = jnp.concatenate([audit.images_for(network, CONFIG, 8, index) for index in (1, 2)])
    np.testing.assert_array_equal(found.predictions, jnp.argmax(network(images).logits, -1))
    same = audit.compare(network, found, network, CONFIG)
    assert same.agreement == 1 and same.transfer == same.teacher_transfer
    with pytest.raises(ValueError, match=r"--student: image shape, mean, std and classes are .* allowed are equal"):
        audit.compare(network, found, networks.shapes("wrn-10-1", classes=4), CONFIG)


@pytest.mark.optax
def test_a_network_without_kernels_to_shuffle_has_the_other_signs():
    config = dataclasses.replace(CONFIG, vaccine=VaccineConfig(kernels=30))
    found = audit.examine(networks.network("wrn-10-1", classes=3), config)
    assert found.signs["tail"] is None and found.signs["agreement"] is None and found.log_kl is None
    assert "30" in found.reasons["tail"]
    assert found.signs["anomaly"] is not None and found.signs["lipschitz"] is not None


def test_images_are_the_same_for_teacher_and_student():
    teacher, student = networks.network("wrn-10-1"), networks.network("wrn-10-2", seed=1)
    jax.tree.map(
        np.testing.assert_array_equal,
        *(audit.images_for(network, CONFIG, 3, 1) for network in (teacher, student)),
    )
