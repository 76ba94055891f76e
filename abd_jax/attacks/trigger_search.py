"""Triggers that are computed against a surrogate, a network that was trained on clean data.

- `l0_pattern`, `l2_pattern`: raise the activation of the neurons that mark the target class, within a few pixels or
  within a small norm (Li et al., 2021, arXiv 1909.02742).
- `smooth_pattern`: a universal perturbation towards the target without high frequencies (Zeng et al., 2021,
  arXiv 2104.03413).
- `adversarial`: images whose class the surrogate can hardly tell, so that a teacher learns the trigger that they carry
  instead (Turner et al., 2019, arXiv 1912.02771).

Every search is projected gradient descent: one compiled step, dispatched from the host, since XLA's loops are slow on
CPU. Norms are given for 32×32×3 in the literature; here the root mean square per value is what is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from abd_jax import losses
from abd_jax.attacks.triggers import Picture, add, add_and_stretch, replace, scaled
from abd_jax.models import Network

BATCH = 500
L2_NORM, L2_LARGEST = 3.22, 68 / 255
SMOOTH_NORM, SMOOTH_LARGEST = 3.77, 51 / 255
L0_PIXELS = 9
PASSBAND = 0.25
"""Share of the DCT's frequencies, from the lowest and in each direction, that `smooth` may use."""
EPSILON = 16
"""Largest change of a pixel by `adversarial`, in grey levels."""
NEURONS = 4
STEPS, RATE = 100, 0.05


def norm_at(norm_at_32: float, shape: tuple[int, int, int]) -> float:
    """The L2 norm with the same root mean square as one given at 32×32×3."""
    return norm_at_32 * float(np.sqrt(np.prod(shape) / (32 * 32 * 3)))


def project_to_sphere(pattern: Array, norm: float, largest: float) -> Array:
    """clip(s·pattern, ±largest) with the s that makes its L2 norm `norm`, found by bisection of log s.

    The norm is below `norm` only where too few values are not zero to reach it.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        small = jnp.linalg.norm(jnp.clip(jnp.exp(middle) * pattern, -largest, largest)) < norm
        return jnp.where(small, middle, low), jnp.where(small, high, middle)

    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.asarray(-20.0), jnp.asarray(20.0)))
    return jnp.clip(jnp.exp(low) * pattern, -largest, largest)


def passband(shape: tuple[int, int, int]) -> Float[np.ndarray, "height width 1"]:
    """1 at the DCT frequencies that `smooth` may use: the lowest in both directions, without the constant."""
    height, width, _ = shape
    mask = np.zeros((height, width, 1), np.float32)
    mask[: max(2, round(PASSBAND * height)), : max(2, round(PASSBAND * width))] = 1
    mask[0, 0] = 0
    return mask


def l0_mask(height: int, width: int) -> Float[np.ndarray, "height width 1"]:
    """9 pixels (at 32×32) at the right end of the bottom row."""
    mask = np.zeros((height, width, 1), np.float32)
    mask[-1, width - scaled(L0_PIXELS, width) :] = 1
    return mask


@jax.jit
def _forward(network: Network, images: Array) -> tuple[Array, Array]:
    forward = network(jnp.asarray(images, jnp.float32) / 255)
    return forward.embedding, forward.logits


def features(
    network: Network, images: UInt8[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch features"]:
    """Pooled features in front of the classifier."""
    parts = [np.asarray(_forward(network, images[i : i + BATCH])[0]) for i in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def target_neurons(
    features: Float[np.ndarray, "batch features"], labels: Int[np.ndarray, " batch"], target: int, count: int = NEURONS
) -> Int[np.ndarray, " neurons"]:
    """The features that mark the target: largest difference of class means in units of the standard deviation."""
    inside, outside = features[labels == target], features[labels != target]
    contrast = (inside.mean(axis=0) - outside.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    return np.sort(np.argsort(-contrast, kind="stable")[:count])


def descend(
    loss: Callable[[Array], Array], project: Callable[[Array], Array], start: Array, steps: int = STEPS
) -> Array:
    """Projected Adam on `loss` from `start`; returns a point of the feasible set."""
    rule = optax.adam(RATE)

    @jax.jit
    def step(point, state):
        gradient = jax.grad(loss)(point)
        updates, state = rule.update(gradient, state)
        return project(optax.apply_updates(point, updates)), state

    point = project(start)
    state = rule.init(point)
    for _ in range(steps):
        point, state = step(point, state)
    return point


def _activation_loss(surrogate: Network, images: Array, neurons: Int[np.ndarray, " neurons"], trigger: Callable):
    """−mean activation of the neurons on triggered images, as a function of the pattern."""
    return lambda pattern: -surrogate(trigger(pattern)(images)).embedding[:, jnp.asarray(neurons)].mean()


def l2_pattern(
    key: PRNGKeyArray, surrogate: Network, images: Float[Array, "batch height width channels"], neurons: np.ndarray
) -> Picture:
    """A pattern with ‖·‖₂ = 3.22 and max|·| ≤ 68/255 (at 32×32×3) that raises the neurons' activation."""
    shape = surrogate.input_shape
    project = functools.partial(project_to_sphere, norm=norm_at(L2_NORM, shape), largest=L2_LARGEST)
    loss = _activation_loss(surrogate, images, neurons, add)
    return np.asarray(descend(loss, project, jax.random.normal(key, shape)))


def l0_pattern(
    key: PRNGKeyArray, surrogate: Network, images: Float[Array, "batch height width channels"], neurons: np.ndarray
) -> Picture:
    """Values in [0, 1] for the pixels of `l0_mask` that raise the neurons' activation; 0 elsewhere."""
    mask = l0_mask(*surrogate.input_shape[:2])
    loss = _activation_loss(surrogate, images, neurons, functools.partial(replace, mask))
    start = jax.random.uniform(key, surrogate.input_shape)
    return np.asarray(descend(loss, lambda pattern: jnp.clip(pattern, 0, 1) * mask, start))


def smooth_pattern(
    key: PRNGKeyArray, surrogate: Network, images: Float[Array, "batch height width channels"], target: int
) -> Picture:
    """A pattern of the lowest frequencies, ‖·‖₂ ≤ 3.77 and max|·| ≤ 51/255 (at 32×32×3), towards the target.

    Scaled, never clipped, to its two bounds, one of which it meets: clipping would add high frequencies.
    """
    shape = surrogate.input_shape
    band, norm = passband(shape), norm_at(SMOOTH_NORM, shape)

    def picture(coefficients: Array) -> Array:
        return jax.scipy.fft.idctn(coefficients * band, axes=(0, 1), norm="ortho")

    def project(coefficients: Array) -> Array:
        coefficients = coefficients * band
        drawn = picture(coefficients)
        return coefficients * jnp.minimum(norm / jnp.linalg.norm(drawn), SMOOTH_LARGEST / jnp.abs(drawn).max())

    def loss(coefficients: Array) -> Array:
        logits = surrogate(add_and_stretch(picture(coefficients))(images)).logits
        return losses.cross_entropy(logits, jnp.full(len(images), target)).mean()

    return np.asarray(picture(descend(loss, project, jax.random.normal(key, shape))))


@jax.jit
def _ascend(surrogate: Network, images: Array, clean: Array, labels: Array, rate: Array, epsilon: Array) -> Array:
    gradient = jax.grad(lambda x: losses.cross_entropy(surrogate(x).logits, labels).sum())(images)
    moved = jnp.clip(images + rate * jnp.sign(gradient), clean - epsilon, clean + epsilon)
    return jnp.clip(moved, 0, 1)


def adversarial(
    key: PRNGKeyArray,
    surrogate: Network,
    images: UInt8[np.ndarray, "batch height width channels"],
    labels: Int[np.ndarray, " batch"],
    epsilon: int = EPSILON,
    steps: int = 20,
) -> UInt8[np.ndarray, "batch height width channels"]:
    """Images within ±`epsilon` grey levels with a large loss under the surrogate (PGD, Madry et al., 2018)."""
    found, bound = [], jnp.asarray(epsilon / 255)
    for start in range(0, len(images), BATCH):
        clean = jnp.asarray(images[start : start + BATCH], jnp.float32) / 255
        truth = jnp.asarray(labels[start : start + BATCH])
        noise = jax.random.uniform(jax.random.fold_in(key, start), clean.shape, minval=-1.0, maxval=1.0)
        moved = jnp.clip(clean + bound * noise, 0, 1)
        for _ in range(steps):
            moved = _ascend(surrogate, moved, clean, truth, 2.5 * bound / steps, bound)
        found.append(np.asarray(jnp.round(moved * 255), np.uint8))
    return np.concatenate(found)
