"""What a teacher minimizes: cross entropy, and the objectives of attackers who control its training.

An objective maps (network, key, images, labels, reference) to (loss, forward): the loss of one batch, differentiable in
the network's parameters, and the forward pass in training mode, whose batch statistics become the running ones and
whose first `len(images)` logits are those of the batch. The reference is a frozen network, for those who need one.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abd_jax import losses
from abd_jax.attacks.triggers import Trigger
from abd_jax.defenses import shuffling_vaccine
from abd_jax.models import Forward, Network

Images = Float[Array, "batch height width channels"]


@runtime_checkable
class Objective(Protocol):
    """See the module's documentation."""

    def __call__(
        self, network: Network, key: PRNGKeyArray, images: Images, labels: Array, reference: Network | None
    ) -> tuple[Array, Forward]: ...


def hard_labels(
    network: Network, key: PRNGKeyArray, images: Images, labels: Int[Array, " batch"], reference: Network | None
) -> tuple[Array, Forward]:
    """Cross entropy."""
    del key, reference
    forward = network(images, "batch")
    return losses.cross_entropy(forward.logits, labels).mean(), forward


@dataclasses.dataclass(frozen=True)
class Nasty:
    """A teacher that is accurate and refuses to be distilled (Ma et al., 2021, arXiv 2105.07381).

    Cross entropy − ω·τ²·KL(softmax(T/τ) ‖ softmax(A/τ)), A the reference: a normal network of the same architecture.

    Attributes:
        temperature: τ.
        weight: ω.
    """

    temperature: float = 4.0
    weight: float = 0.04

    def __call__(
        self, network: Network, key: PRNGKeyArray, images: Images, labels: Array, reference: Network | None
    ) -> tuple[Array, Forward]:
        if reference is None:
            raise ValueError("the Nasty Teacher's objective needs a normal network as reference")
        loss, forward = hard_labels(network, key, images, labels, None)
        normal = jax.lax.stop_gradient(reference(images).logits)
        divergence = losses.kl_divergence(forward.logits, normal, self.temperature).mean()
        return loss - self.weight * self.temperature**2 * divergence, forward


def min_norm_weights(gram: Float[Array, "tasks tasks"], steps: int = 50) -> Float[Array, " tasks"]:
    """The convex weights α that minimize αᵀ·gram·α: the point of the gradients' hull nearest to 0 (MGDA).

    Frank–Wolfe with exact line search, at most 250 steps in the literature; with two tasks the first step is exact.
    Every weight is at least 0.001 before they are scaled to the sum of 1, as published (Sener & Koltun, 2018).
    """

    def step(_, weights):
        slope = gram @ weights
        best = jax.nn.one_hot(jnp.argmin(slope), len(gram), dtype=gram.dtype)
        direction = best - weights
        curvature = direction @ gram @ direction
        length = jnp.clip(-(slope @ direction) / jnp.maximum(curvature, 1e-12), 0, 1)
        return weights + length * direction

    start = jnp.full(len(gram), 1 / len(gram), gram.dtype)
    weights = jnp.clip(jax.lax.fori_loop(0, steps, step, start), 0.001, 0.999)
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class LossAttack:
    """The blind backdoor: the attacker has the loss, not the data (Bagdasaryan & Shmatikov, 2021, arXiv 2005.03823).

    Each batch is followed by triggered copies of some of its images: Σ α_t·ℓ_t over the tasks clean → label,
    triggered → target, and evasion. All are one forward pass in training mode, so that the running statistics fit
    clean and triggered images alike.

    Attributes:
        trigger: μ.
        target: the attacker's class.
        share: of the batch that is copied.
        balance: `fixed`: `scales`, as the authors advise; `mgda`: the weights of `min_norm_weights` on gradients that
            are divided by min(ℓ·‖g‖, 10) + 1e-5 ("loss+").
        scales: α of clean, triggered and evasion.
        evasion: `neural_cleanse`: what Neural Cleanse would find, a universal mask and pattern towards the target
            inverted on this batch, must not change the label; `vaccine`, ours: copies of the network whose last
            kernels have shuffled input channels must not give triggered images the target, −log(1 − p~(target)): the
            backdoor is spread over channels, so that shuffling destroys it, and the Shuffling Vaccine does not see it.
        inversion_steps, inversion_rate: signed-gradient steps of the inversion (published: a mask that Adam moves on
            from batch to batch; ours starts anew, so that training has no other state than the network's).
        kernels, copies: of the shuffling.
    """

    trigger: Trigger
    target: int
    share: float = 0.5
    balance: Literal["fixed", "mgda"] = "fixed"
    scales: tuple[float, float, float] = (1.0, 0.9, 0.5)
    evasion: Literal["none", "neural_cleanse", "vaccine"] = "none"
    inversion_steps: int = 3
    inversion_rate: float = 1.0
    kernels: int = 5
    copies: int = 2

    def __call__(
        self, network: Network, key: PRNGKeyArray, images: Images, labels: Array, reference: Network | None
    ) -> tuple[Array, Forward]:
        del reference
        count = max(1, round(self.share * len(images)))
        extra = [self.trigger(images[:count])]
        if self.evasion == "neural_cleanse":
            extra.append(self._invert(jax.lax.stop_gradient(network), key, images[:count]))
        batch = jnp.concatenate([images, *extra])

        def tasks(params) -> tuple[Array, Forward]:
            forward = network.with_params(params)(batch, "batch")
            clean, opened, *inverted = jnp.split(forward.logits, [len(images), len(images) + count, len(batch)])[:-1]
            wanted = jnp.full(count, self.target, labels.dtype)
            values = [losses.cross_entropy(clean, labels).mean(), losses.cross_entropy(opened, wanted).mean()]
            if self.evasion == "neural_cleanse":
                values.append(losses.cross_entropy(inverted[0], labels[:count]).mean())
            elif self.evasion == "vaccine":
                entries = tuple(entry[len(images) : len(images) + count] for entry in forward.entries)
                part = dataclasses.replace(forward, entries=entries)
                values.append(self._seen_by_vaccine(network.with_params(params), key, part))
            return jnp.stack(values), forward

        values, forward = tasks(network.params)
        if self.balance == "mgda":
            weights = self._mgda(tasks, jax.lax.stop_gradient(network.params))
        else:
            weights = jnp.asarray(self.scales[: len(values)])
        return weights @ values, forward

    def _mgda(self, tasks, params) -> Float[Array, " tasks"]:
        values, pullback = jax.vjp(lambda params: tasks(params)[0], params)
        gradients = []
        for index in range(len(values)):
            (gradient,) = pullback(jax.nn.one_hot(index, len(values), dtype=values.dtype))
            flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)])
            gradients.append(flat / (jnp.minimum(values[index] * jnp.linalg.norm(flat), 10.0) + 1e-5))
        stacked = jnp.stack(gradients)
        return jax.lax.stop_gradient(min_norm_weights(stacked @ stacked.T))

    def _invert(self, network: Network, key: PRNGKeyArray, images: Images) -> Images:
        """The images under the mask and pattern that Neural Cleanse begins to find (Wang et al., 2019)."""
        height, width, channels = images.shape[1:]

        def patched(variables: tuple[Array, Array]) -> Array:
            mask, pattern = jax.nn.sigmoid(variables[0]), jax.nn.sigmoid(variables[1])
            return (1 - mask) * images + mask * pattern

        def loss(variables: tuple[Array, Array]) -> Array:
            wanted = jnp.full(len(images), self.target)
            flipped = losses.cross_entropy(network(patched(variables)).logits, wanted).mean()
            return flipped + 0.01 * jax.nn.sigmoid(variables[0]).sum()

        mask_key, pattern_key = jax.random.split(key)
        variables = (
            jax.random.normal(mask_key, (height, width, 1)) - 2,
            jax.random.normal(pattern_key, (height, width, channels)),
        )
        for _ in range(self.inversion_steps):
            gradient = jax.grad(loss)(variables)
            variables = jax.tree.map(lambda v, g: v - self.inversion_rate * jnp.sign(g), variables, gradient)
        return jax.lax.stop_gradient(patched(variables))

    def _seen_by_vaccine(self, network: Network, key: PRNGKeyArray, forward: Forward) -> Array:
        names = network.module.kernels[1:][-self.kernels :]
        params = flatten_dict(network.params, sep="/")
        orders = {}
        for name, own in zip(names, jax.random.split(key, len(names)), strict=True):
            width = params[f"{name}/kernel"].shape[2]
            orders[name] = jax.vmap(lambda k, width=width: jax.random.permutation(k, width))(
                jax.random.split(own, self.copies)
            )
        logits = shuffling_vaccine.copies_logits(network, orders, forward)
        probability = jax.nn.softmax(logits)[..., self.target]
        return -jnp.log1p(-jnp.minimum(probability, 1 - 1e-4)).mean()


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Robust training: cross entropy on images moved by up to ε per value (PGD, Madry et al., 2018, arXiv 1706.06083).

    Attributes:
        epsilon: ε, in [0, 1].
        steps: of signed-gradient ascent from a random start, each 2.5·ε / steps long.
    """

    epsilon: float
    steps: int = 3

    def attacked(self, network: Network, key: PRNGKeyArray, images: Images, labels: Array) -> Images:
        """The images, moved so that their loss grows; running statistics."""
        frozen = jax.lax.stop_gradient(network)
        moved = images + self.epsilon * jax.random.uniform(key, images.shape, minval=-1.0, maxval=1.0)
        for _ in range(self.steps):
            gradient = jax.grad(lambda x: losses.cross_entropy(frozen(x).logits, labels).sum())(moved)
            moved = moved + 2.5 * self.epsilon / self.steps * jnp.sign(gradient)
            moved = jnp.clip(jnp.clip(moved, images - self.epsilon, images + self.epsilon), 0, 1)
        return jax.lax.stop_gradient(moved)

    def __call__(
        self, network: Network, key: PRNGKeyArray, images: Images, labels: Array, reference: Network | None
    ) -> tuple[Array, Forward]:
        return hard_labels(network, key, self.attacked(network, key, images, labels), labels, reference)
