"""The input-aware trigger (Nguyen & Tran, 2020, arXiv 2010.08138): a small network draws another one for each image.

The published attack trains this network together with the teacher. Here it is trained together with a copy of a
surrogate, then frozen: any teacher can then be poisoned with it, and it is one fixed function of the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from abd_jax import losses
from abd_jax.models import Network

Images = Float[Array, "batch height width channels"]
COVER = 0.06
"""Share of the mask from which it is penalized (published: 0.032 at 32×32×3)."""
STEPS, BATCH, RATE = 300, 64, 1e-3
DIVERSITY, SPARSITY = 1.0, 100.0


class TriggerNetwork(nn.Module):
    """Image → (mask, pattern), both in [0, 1]: three convolutions at half the size between two at full size."""

    channels: int

    @nn.compact
    def __call__(self, images: Array) -> tuple[Array, Array]:
        size = images.shape
        h = nn.relu(nn.Conv(16, (3, 3))(2 * images - 1))
        h = nn.relu(nn.Conv(32, (3, 3), strides=2)(h))
        h = nn.relu(nn.Conv(32, (3, 3))(h))
        h = jax.image.resize(h, (*size[:3], 32), "nearest")
        h = nn.relu(nn.Conv(16, (3, 3))(h))
        h = nn.Conv(self.channels + 1, (3, 3))(h)
        return nn.sigmoid(h[..., :1] - 2), nn.sigmoid(h[..., 1:])


def draw(variables: Mapping[str, Any], images: Images) -> tuple[Array, Array]:
    """Mask and pattern for each image."""
    return cast(tuple[Array, Array], TriggerNetwork(images.shape[-1]).apply(variables, images))


@jax.jit
def patch(variables: Mapping[str, Any], images: Images, sources: Images) -> Images:
    """The images under what is drawn for the sources: the trigger if they are the same, a decoy if they are not."""
    mask, pattern = draw(variables, sources)
    return (1 - mask) * images + mask * pattern


def diversity(images: Images, others: Images, drawn: Array, drawn_for_others: Array) -> Float[Array, ""]:
    """mean ‖x − x'‖ / ‖g(x) − g(x')‖: small if different images are given different triggers."""
    apart = jnp.sqrt(jnp.sum(jnp.square(images - others), axis=(1, 2, 3)))
    drawn_apart = jnp.sqrt(jnp.sum(jnp.square(drawn - drawn_for_others), axis=(1, 2, 3)) + 1e-6)
    return jnp.mean(apart / (drawn_apart + 1e-3))


def _loss(params: tuple[Any, Any], network: Network, images: Images, labels: Array, target: Array):
    generator, classifier = params
    others = jnp.roll(images, 1, axis=0)
    mask, pattern = draw(generator, images)
    drawn = mask * pattern
    own = (1 - mask) * images + drawn
    crossed = (1 - jnp.roll(mask, 1, axis=0)) * images + jnp.roll(drawn, 1, axis=0)
    forward = network.with_params(classifier)(jnp.concatenate([images, own, crossed]), "batch")
    wanted = jnp.concatenate([labels, jnp.full_like(labels, target), labels])
    loss = losses.cross_entropy(forward.logits, wanted).mean()
    loss = loss + SPARSITY * nn.relu(mask.mean() - COVER)
    return loss + DIVERSITY * diversity(images, others, drawn, jnp.roll(drawn, 1, axis=0)) / 10, forward


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _step(params, state, network: Network, images: Images, labels: Array, target: Array):
    gradient, forward = jax.grad(_loss, has_aux=True)(params, network, images, labels, target)
    updates, state = optax.adam(RATE).update(gradient, state)
    return optax.apply_updates(params, updates), state, network.absorb(forward)


def fit(
    key: PRNGKeyArray,
    surrogate: Network,
    images: UInt8[np.ndarray, "train height width channels"],
    labels: Int[np.ndarray, " train"],
    target: int,
    steps: int = STEPS,
) -> dict[str, np.ndarray]:
    """Trains the trigger network and a copy of the surrogate together; returns the former's variables by path."""
    init_key, order_key = jax.random.split(key)
    generator = TriggerNetwork(images.shape[-1]).init(init_key, jnp.zeros((1, *images.shape[1:])))
    params = (generator, jax.tree.map(jnp.copy, surrogate.params))
    state = optax.adam(RATE).init(params)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    network = surrogate
    for _ in range(steps):
        rows = rng.choice(len(images), min(BATCH, len(images)), replace=False)
        batch = jnp.asarray(images[rows], jnp.float32) / 255
        params, state, network = _step(
            params, state, network.with_params({}), batch, jnp.asarray(labels[rows]), jnp.asarray(target, labels.dtype)
        )
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(params[0], sep="/").items()}


def trigger(variables: Mapping[str, np.ndarray]) -> Callable[[Images], Images]:
    """What `fit` found, as a trigger."""
    nested = unflatten_dict(dict(variables), sep="/")
    return lambda images: patch(nested, images, images)


def decoy(variables: Mapping[str, np.ndarray]):
    """Images under the triggers of other images, as a `poison.Decoy`."""
    nested = unflatten_dict(dict(variables), sep="/")

    def crossed(images: UInt8[np.ndarray, "batch height width channels"], rng: np.random.Generator) -> np.ndarray:
        if not len(images):
            return images
        moved = np.asarray(patch(nested, *(jnp.asarray(x, jnp.float32) / 255 for x in (images, np.roll(images, 1, 0)))))
        return np.round(np.clip(moved, 0, 1) * 255).astype(np.uint8)

    return crossed
