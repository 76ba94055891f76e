"""Scalar losses on logits and activations. Pure functions; every reduction is spelled out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from abd_jax.models import Network

_EPSILON = 1e-12


def weighted_mean(values: Float[Array, " batch"], weights: Float[Array, " batch"] | None = None) -> Float[Array, ""]:
    """Mean over images; with weights, `Σ w·v / Σ w` (0 where all weights are 0)."""
    if weights is None:
        return values.mean()
    return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), _EPSILON)


def kl_divergence(
    logits_p: Float[Array, "*batch classes"], logits_q: Float[Array, "*batch classes"], temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """KL(p ‖ q) = Σ p (log p − log q) per image, in nats, with p, q = softmax(logits / temperature).

    Computed from log-softmaxes, so finite for any finite logits; differentiable in both arguments.
    """
    log_p = jax.nn.log_softmax(logits_p / temperature)
    log_q = jax.nn.log_softmax(logits_q / temperature)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def attention_map(
    activation: Float[Array, "batch height width channels"],
) -> Float[Array, "batch positions"]:
    """Channel-mean of squares, flattened and scaled to unit L2 norm per image (Zagoruyko & Komodakis, 2017)."""
    energy = jnp.mean(jnp.square(activation.astype(jnp.float32)), axis=-1).reshape(activation.shape[0], -1)
    return energy * jax.lax.rsqrt(jnp.sum(jnp.square(energy), axis=-1, keepdims=True) + _EPSILON)


def attention_transfer(
    student_maps: Sequence[Float[Array, "batch _"]], teacher_maps: Sequence[Float[Array, "batch _"]]
) -> Float[Array, " batch"]:
    """Σ over stages of the mean squared difference of attention maps, per image.

    Raises:
        ValueError: stages differ in number or resolution.
    """
    shapes = [[m.shape for m in maps] for maps in (student_maps, teacher_maps)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"attention maps of student and teacher differ in shape: {shapes[0]} and {shapes[1]}; "
            "take two networks of one family, or weight 0 for attention transfer"
        )
    return sum(
        jnp.mean(jnp.square(s - t), axis=-1) for s, t in zip(student_maps, teacher_maps, strict=True)
    ) + jnp.zeros(())


def check_attention_transfer(student: Network, teacher: Network) -> None:
    """Whether attention can be transferred between two networks, without computing anything.

    Raises:
        ValueError: their stages differ in number or resolution.
    """
    sides = []
    for network in (student, teacher):
        images = jax.ShapeDtypeStruct((1, *network.input_shape), jnp.float32)
        stages = jax.eval_shape(lambda network, images: network(images).stages, network, images)
        sides.append(["×".join(map(str, stage.shape[1:3])) for stage in stages])
    if sides[0] != sides[1]:
        raise ValueError(
            f"student.attention above 0 needs stages of equal resolution: the student's are {', '.join(sides[0])} "
            f"pixels, the teacher's {', '.join(sides[1])}; take two networks of one family, or student.attention 0"
        )


def class_imbalance(logits: Float[Array, "batch classes"]) -> Float[Array, ""]:
    """Σ p̄ log p̄ of the batch's mean softmax: −log C for a balanced batch, 0 for a single class (DAFL, 2019)."""
    mean = jax.nn.softmax(logits).mean(axis=0)
    return jnp.sum(mean * jnp.log(mean + _EPSILON))


def cross_entropy(logits: Float[Array, "batch classes"], labels: Array) -> Float[Array, " batch"]:
    """−log softmax(logits)[label] per image."""
    return optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))


def jensen_shannon(
    logits_p: Float[Array, "*batch classes"], logits_q: Float[Array, "*batch classes"], temperature: float = 1.0
) -> Float[Array, "*batch"]:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2 per image, in nats: 0 … log 2."""
    log_p = jax.nn.log_softmax(logits_p / temperature)
    log_q = jax.nn.log_softmax(logits_q / temperature)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return 0.5 * jnp.sum(jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m), axis=-1)


def l2_norm(x: Array) -> Float[Array, ""]:
    """‖x‖₂ over all axes, with gradient 0 at 0."""
    square = jnp.sum(jnp.square(x))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


Moments = tuple[Float[Array, " _"], Float[Array, " _"]]
"""Mean and variance per channel of one layer; layers differ in width."""


def batch_norm_distance(batch: Sequence[Moments], stored: Sequence[Moments]) -> Float[Array, ""]:
    """Σ over layers of ‖μ − μ_BN‖₂ + ‖σ² − σ²_BN‖₂ (DeepInversion, Yin et al., 2020, arXiv 1912.08795)."""
    pairs = [pair for own, other in zip(batch, stored, strict=True) for pair in zip(own, other, strict=True)]
    return sum(l2_norm(own - other) for own, other in pairs) + jnp.zeros(())


def total_variation(images: Float[Array, "batch height width channels"]) -> Float[Array, ""]:
    """Σ of the L2 norms of a batch's differences between neighbors: across, down and along both diagonals."""
    x = images
    across, down = x[:, :, 1:] - x[:, :, :-1], x[:, 1:] - x[:, :-1]
    falling, rising = x[:, 1:, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, 1:]
    return sum(map(l2_norm, (across, down, falling, rising))) + jnp.zeros(())


def agreed_divergence(
    teacher_logits: Float[Array, "batch classes"], student_logits: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """KL(T ‖ S) per image where S and T decide alike, else 0: what adversarial inversion maximizes (CMI, 2021)."""
    agree = jnp.argmax(teacher_logits, -1) == jnp.argmax(student_logits, -1)
    return jnp.where(agree, kl_divergence(teacher_logits, student_logits), 0.0)


def contrastive(
    queries: Float[Array, "items features"],
    keys: Float[Array, "items features"],
    present: Bool[Array, " items"],
    temperature: float,
) -> Float[Array, " items"]:
    """−log softmax(queries · keysᵀ / τ)[i, i] per item, among the items that are present; 0 for those that are not.

    Never NaN: an item that is not present only loses its column.
    """
    similarity = queries @ keys.T / temperature
    similarity = jnp.where(present[None, :] | jnp.eye(len(present), dtype=bool), similarity, -jnp.inf)
    return jnp.where(present, jax.nn.logsumexp(similarity, axis=-1) - jnp.diagonal(similarity), 0.0)
