"""The library's annotations are checked while tests run, and stand-ins for arrays pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from abd_jax import losses
from abd_jax.models import BatchNormTap
from abd_jax.screening import Screening
from abd_jax.synthesis.zskt import ZSKTConfig


def test_a_wrong_shape_is_caught():
    losses.class_imbalance(jnp.zeros((2, 3)))
    with pytest.raises(TypeCheckError):
        losses.class_imbalance(jnp.zeros(3))
    with pytest.raises(TypeCheckError):
        losses.kl_divergence(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_a_wrong_shape_is_caught_under_jit():
    with pytest.raises(TypeCheckError):
        jax.jit(losses.weighted_mean)(jnp.zeros(3), jnp.zeros(4))


def test_a_pytree_of_wrong_shapes_is_caught():
    with pytest.raises(TypeCheckError):
        Screening(jnp.ones((2, 1)), jnp.zeros(()), {})
    with pytest.raises(TypeCheckError):
        BatchNormTap(jnp.ones(3), jnp.ones(4), jnp.ones((2, 3)))


def test_a_configuration_of_wrong_types_is_caught():
    with pytest.raises(TypeCheckError):
        ZSKTConfig(latent="100")


@pytest.mark.parametrize("stand_in", [None, "P('data')", np.zeros((2, 2)), object()])
def test_a_pytree_of_stand_ins_passes(stand_in):
    screening = Screening(jnp.ones(2), jnp.zeros(()), {})
    assert jax.tree.map(lambda leaf: stand_in, screening).weights is stand_in
    assert jax.eval_shape(lambda: screening).weights.shape == (2,)
