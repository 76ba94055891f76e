"""Self-Retrospection (Hong et al., ICML 2023, arXiv 2306.02368, §4.2): unlearns the backdoor that came through.

min_θ max_δ E KL(S(x | θ) ‖ S(x + δ | θ)) with one universal δ: the student finds its own worst perturbation and is made
insensitive to it, by an implicit hypergradient. δ is in units of the standardized input (pixels divided by std).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from abd_jax import losses
from abd_jax.defenses.hypergradient import implicit_hypergradient
from abd_jax.models import Leaf, Network, Norm
from abd_jax.settings import check


@dataclasses.dataclass(frozen=True)
class RetrospectionConfig:
    """Settings of Self-Retrospection.

    Attributes:
        perturb: whose output δ is found to change: the `student`'s (paper) or the `teacher`'s (released code); or
            `inverted` (ours): in place of δ, the trigger that was inverted from the teacher is pasted on a `portion` of
            each batch, and distillation itself teaches that it changes nothing.
        drop: share of that trigger's pixels that are left out, drawn for each image anew.
        hunt: with `inverted`, steps in each round of a search for a trigger that the *student* still follows, to the
            class that is suspected; every second image that is pasted on gets what was found so far. 0: no search.
        restart: rounds after which that search starts afresh, from a faint gray over the whole image.
        start: δ starts from N(0, σ²) (`noise`) or from 0 (`zeros`, where the true gradient vanishes).
        warm_start: whether, from a cycle's second update on, δ goes on from where the update before left it (ours), so
            that fewer `ascent_steps` do.
        sigma: σ. With `dtype` bfloat16 a δ of 1e-3 is lost where the input is near 1, whose neighbors lie 4e-3 to 8e-3
            away: the first ascent gradient is then that of rounding, as it is with `zeros`.
        ascent: `adam`, plain gradient ascent (`sgd`), or steps along the gradient of length `ascent_rate`
            (`normalized`, ours): these concentrate δ on the few pixels that matter most, as a trigger does.
        ascent_rate: its learning rate.
        ascent_steps: its steps.
        ascent_share: share of the batch on which δ is found, or on which a trigger is hunted (ours; 1: all of it, as
            published).
        epsilon: largest L2 norm of δ; 0 for none.
        pixels: δ keeps only so many pixels, those of largest magnitude, after every step (ours; 0: all of them): a
            dense δ finds directions to which every network is sensitive before it finds a local trigger.
        portion: share of the batch that is perturbed in the outer loss, at least one image.
        round_down: ⌊portion·B⌋ as in the released code, which may be no image at all.
        anchor: the clean branch of the outer loss: the `student`'s output (paper), or the `teacher`'s (ours), which
            cannot collapse towards what is easy to keep.
        clean_gradient: whether the student's clean branch of the outer loss is differentiated.
        weight: of the hypergradient beside the distillation gradient, on equal KL scales.
        norm: statistics of the student's batch normalization in these passes. Passes of δ never update running ones;
            with `inverted` the pasted images are part of the batch that does.
        start_fraction: share of the run after which Self-Retrospection is on.
        iterations: K, substitutions of the fixed point.
        fixed_point_rate: η of Φ(δ) = δ − η ∇_δ [−KL + decay·‖δ‖²].
        decay: the L2 weight there.
    """

    perturb: Literal["student", "teacher", "inverted"] = "student"
    drop: float = 0.25
    hunt: int = 0
    restart: int = 20
    start: Literal["noise", "zeros"] = "noise"
    warm_start: bool = False
    sigma: float = 1e-3
    ascent: Literal["adam", "sgd", "normalized"] = "adam"
    ascent_rate: float = 0.1
    ascent_steps: int = 10
    ascent_share: float = 1.0
    epsilon: float = 0.0
    pixels: int = 0
    portion: float = 1.0
    round_down: bool = False
    anchor: Literal["student", "teacher"] = "student"
    clean_gradient: bool = True
    weight: float = 1.0
    norm: Norm = "batch"
    start_fraction: float = 0.9
    iterations: int = 5
    fixed_point_rate: float = 0.1
    decay: float = 1e-3

    def __post_init__(self) -> None:
        check(
            "retrospection",
            self,
            positive=("ascent_rate", "fixed_point_rate", "restart"),
            nonnegative=("sigma", "epsilon", "pixels", "weight", "decay", "ascent_steps", "iterations", "hunt"),
            shares=("portion", "start_fraction", "drop"),
            up_to_one=("ascent_share",),
        )

    def perturbed(self, batch: int) -> int:
        """How many images of a batch the outer loss perturbs."""
        exact = self.portion * batch
        return int(exact) if self.round_down else max(1, round(exact))

    def seen(self, batch: int) -> int:
        """On how many images of a batch δ, or a trigger, is sought."""
        return max(2, round(self.ascent_share * batch))


@struct.dataclass
class Ascent:
    """δ on its way up.

    Attributes:
        delta: `[height, width, channels]`, in units of the standardized input.
        optimizer: state of the rule that moves it.
        images: on which it is found, `[batch, height, width, channels]`.
        clean: the logits there without δ, `[batch, classes]`.
    """

    delta: Leaf
    optimizer: optax.OptState
    images: Leaf
    clean: Leaf


def _divergence(
    network: Network, norm: Norm, images: Array, delta: Array, mask: Array, clean: Array | None = None
) -> Float[Array, ""]:
    """Mean over images and classes of KL(clean ‖ f(x + mask·δ)); `clean` is f(x) if it is not given."""
    shift = delta * jnp.asarray(network.std)
    if clean is None:
        clean = network(images, norm).logits
    moved = network(images + mask[:, None, None, None] * shift, norm).logits
    return losses.kl_divergence(clean, moved).mean() / clean.shape[-1]


def ascent_rule(config: RetrospectionConfig) -> optax.GradientTransformation:
    """The optimizer that finds δ."""
    if config.ascent == "normalized":
        return optax.chain(optax.normalize_by_update_norm(), optax.sgd(config.ascent_rate))
    return {"adam": optax.adam, "sgd": optax.sgd}[config.ascent](config.ascent_rate)


def _source(config: RetrospectionConfig, student: Network, teacher: Network) -> tuple[Network, Norm]:
    """Whose output δ changes, and by whose statistics it normalizes."""
    return (student, config.norm) if config.perturb == "student" else (teacher, "running")


def begin_ascent(
    config: RetrospectionConfig,
    key: PRNGKeyArray,
    student: Network,
    teacher: Network,
    images: Float[Array, "batch height width channels"],
    last: Float[Array, "height width channels"],
    update: int | np.integer | Int[Array, ""],
) -> Ascent:
    """δ at its start, and f(x), which does not change on the way.

    The start is σ·N(0, 1) or zeros; with `warm_start` it is `last` in every update of a cycle but the first, number 0.
    """
    network, norm = _source(config, student, teacher)
    images = images[: config.seen(images.shape[0])]
    scale = config.sigma if config.start == "noise" else 0.0
    delta = scale * jax.random.normal(key, images.shape[1:])
    if config.warm_start:
        delta = jnp.where(update > 0, last, delta)
    return Ascent(delta, ascent_rule(config).init(delta), images, network(images, norm).logits)


def ascend(config: RetrospectionConfig, ascent: Ascent, student: Network, teacher: Network) -> Ascent:
    """One step towards argmax E KL(f(x) ‖ f(x + δ)) − decay·‖δ‖², projected to the ε-ball if there is one.

    f is the student with the statistics of `config.norm`, or the teacher, by `config.perturb`.
    """
    network, norm = _source(config, student, teacher)
    everyone = jnp.ones(ascent.images.shape[0])

    def loss(delta):
        divergence = _divergence(network, norm, ascent.images, delta, everyone, ascent.clean)
        return config.decay * jnp.sum(jnp.square(delta)) - divergence

    updates, optimizer = ascent_rule(config).update(jax.grad(loss)(ascent.delta), ascent.optimizer, ascent.delta)
    delta = optax.apply_updates(ascent.delta, updates)
    if config.pixels:
        magnitude = jnp.abs(delta).max(axis=-1)
        least = jnp.sort(magnitude.ravel())[-min(config.pixels, magnitude.size)]
        delta = delta * (magnitude >= least)[..., None]
    if config.epsilon:
        delta = delta * jnp.minimum(1.0, config.epsilon / jnp.sqrt(jnp.sum(jnp.square(delta)) + 1e-12))
    return dataclasses.replace(ascent, delta=delta, optimizer=optimizer)


def unlearn(
    config: RetrospectionConfig,
    key: PRNGKeyArray,
    delta: Float[Array, "height width channels"],
    student: Network,
    images: Float[Array, "batch height width channels"],
    teacher_logits: Float[Array, "batch classes"],
) -> tuple[PyTree, dict[str, Array]]:
    """The hypergradient at δ, to add to the student's distillation gradient, times `weight`; and metrics.

    Reference: Zeng et al., 2022 (arXiv 2110.03735) for the implicit form; Hong et al., 2023, for the objective.
    """
    batch = images.shape[0]
    mask = (jax.random.permutation(key, batch) < config.perturbed(batch)).astype(jnp.float32)
    everyone = jnp.ones(batch)

    def outer(delta, params):
        moving, clean = student.with_params(params), None
        if config.anchor == "teacher":
            clean = teacher_logits
        elif not config.clean_gradient:
            clean = jax.lax.stop_gradient(moving(images, config.norm).logits)
        return _divergence(moving, config.norm, images, delta, mask, clean)

    def fixed_point(delta, params):
        def inner(delta):
            divergence = _divergence(student.with_params(params), config.norm, images, delta, everyone)
            return config.decay * jnp.sum(jnp.square(delta)) - divergence

        return delta - config.fixed_point_rate * jax.grad(inner)(delta)

    value, gradient = implicit_hypergradient(outer, fixed_point, delta, student.params, config.iterations)
    metrics = {
        "retrospection/divergence": value,
        "retrospection/delta_norm": jnp.sqrt(jnp.sum(jnp.square(delta)) + 1e-12),
    }
    return jax.tree.map(lambda g: config.weight * g, gradient), metrics
