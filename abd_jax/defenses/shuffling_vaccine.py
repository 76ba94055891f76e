"""The Shuffling Vaccine (Hong et al., ICML 2023, arXiv 2306.02368, §4.1): keeps triggers out of synthesized images.

A backdoor's shortcut survives when the input channels of the last kernels are permuted; what the network knows of
clean images does not. So an image on which the shuffled teachers T~ agree with the teacher T is suspicious.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abd_jax import losses
from abd_jax.models import Forward, Leaf, Network
from abd_jax.screening import Screen, Screening
from abd_jax.settings import check

_SMALLEST_KL = 1e-12


@dataclasses.dataclass(frozen=True)
class VaccineConfig:
    """Settings of the vaccine.

    Attributes:
        copies: shuffled teachers in the ensemble.
        kernels: how many of the last convolution kernels are shuffled.
        alpha: weight of the penalty −φ·KL(T ‖ T~) in the generator's loss.
        reduction: the penalty's KL is the sum over classes, or their mean (the sum divided by C).
        normalize: the penalty is averaged over suspicious images (`masked`) or over all (`batch`).
        suspicion: an image is suspicious if argmax T~ = argmax T (`argmax`), or if log10 KL(T ‖ T~) lies below the
            selection's threshold (`threshold`, ours), or below the batch's median by `deviations` robust standard
            deviations, 1.4826 · the median absolute deviation (`outlier`, ours), or if a share `quorum` of the copies,
            each by itself, has T's argmax (`vote`, ours: no single draw decides).
        quorum: of `vote`.
        generator_weights: whether suspicious images count only `suspicious_weight` in the generator's reward (ours).
        student_weights: weights in the student's loss: none; `paper`: 1 − φ + w·φ; `released`: the group means as in
            the published code, which *ascends* on suspicious images with 0.1.
        suspicious_weight: w above.
        censor: whether the teacher is overruled where it gives an image to the suspected class only as long as it sees
            the place of the trigger that was inverted from it (ours).
        class_balance: weight of Σ p̄ log p̄, p̄ the teacher's mean softmax over a batch, in the generator's loss (ours).
        select: whether T~ is chosen by Algorithm 2; otherwise the first draw is kept.
        tail: accept a draw if this share of log KL lies under the threshold.
        deviations: the threshold is the mean of log KL minus so many standard deviations.
        trials: draws at most.
    """

    copies: int = 3
    kernels: int = 5
    alpha: float = 0.1
    reduction: Literal["class_mean", "sum"] = "class_mean"
    normalize: Literal["masked", "batch"] = "masked"
    suspicion: Literal["argmax", "threshold", "outlier", "vote"] = "argmax"
    quorum: float = 0.25
    generator_weights: bool = False
    student_weights: Literal["none", "paper", "released"] = "none"
    suspicious_weight: float = 0.1
    censor: bool = False
    class_balance: float = 0.0
    select: bool = True
    tail: float = 0.02
    deviations: float = 3.0
    trials: int = 8

    def __post_init__(self) -> None:
        check(
            "vaccine",
            self,
            positive=("copies", "kernels", "trials"),
            nonnegative=("alpha", "class_balance", "deviations", "suspicious_weight"),
            up_to_one=("quorum",),
            below_one=("tail",),
        )

    def acts(self, updates: int) -> bool:
        """Whether it changes anything in a method that makes so many updates of its images."""
        on_images = updates > 0 and (self.alpha > 0 or self.class_balance > 0 or self.generator_weights)
        return on_images or self.student_weights != "none" or self.censor


@struct.dataclass
class Vaccine:
    """A draw of T~ and what is known of it.

    Attributes:
        permutations: kernel → one permutation of its input channels per copy, `[copies, channels]`.
        threshold: mean − deviations·std of log10 KL(T ‖ T~) over the images of the selection.
        tail: share of those images under the threshold.
        trials: draws that were made.
        enabled: 0 if no draw was accepted, which switches the vaccine off.
    """

    permutations: dict[str, Leaf]
    threshold: Leaf
    tail: Leaf
    trials: Leaf
    enabled: Leaf


def draw(key: PRNGKeyArray, teacher: Network, config: VaccineConfig) -> dict[str, Int[Array, "copies channels"]]:
    """One independent permutation per copy for each of the last `config.kernels` kernels.

    Raises:
        ValueError: the teacher has fewer shufflable kernels, or kernels of a single input channel.
    """
    names = teacher.module.kernels[1:]
    if len(names) < config.kernels:
        raise ValueError(
            f"vaccine.kernels {config.kernels}: this teacher has {len(names)} kernels that can be shuffled"
        )
    chosen = names[-config.kernels :]
    widths = {name: flatten_dict(teacher.params, sep="/")[f"{name}/kernel"].shape[2] for name in chosen}
    if min(widths.values()) < 2:
        raise ValueError("a kernel of one input channel has only the identity permutation: it cannot be shuffled")
    keys = jax.random.split(key, (len(chosen), config.copies))
    permute = jax.vmap(lambda key, width: jax.random.permutation(key, width), in_axes=(0, None))
    drawn = {name: permute(keys[index], widths[name]) for index, name in enumerate(chosen)}
    if all(bool(jnp.all(order == jnp.arange(order.shape[1]))) for order in drawn.values()):
        raise ValueError("only identity permutations were drawn: these kernels have too few input channels")
    return drawn


def undecided(key: PRNGKeyArray, teacher: Network, config: VaccineConfig) -> Vaccine:
    """The first draw, switched off: what stands in a run's state until `select` has spoken."""
    threshold, tail, enabled = (jnp.zeros((), jnp.float32) for _ in range(3))  # one buffer each: the state is donated
    return Vaccine(draw(key, teacher, config), threshold, tail, jnp.zeros((), jnp.int32), enabled)


def shuffle(teacher: Network, permutations: dict[str, Int[Array, "copies channels"]], copy: int) -> Network:
    """One shuffled teacher, spelled out: kernel[:, :, π, :] for each permuted kernel."""
    params = flatten_dict(teacher.params, sep="/")
    for name, orders in permutations.items():
        params[f"{name}/kernel"] = params[f"{name}/kernel"][:, :, orders[copy], :]
    return teacher.with_params(unflatten_dict(params, sep="/"))


def copies_logits(
    teacher: Network, permutations: dict[str, Int[Array, "copies channels"]], forward: Forward
) -> Float[Array, "copies batch classes"]:
    """The logits of every shuffled copy, from the activation at which the copies part from the teacher.

    Everything before the first shuffled kernel is read from the teacher's own `forward`. Permuting a kernel's input
    channels by π equals permuting what enters it by π⁻¹, so the copies are one pass of the same weights.
    """
    entry = min(teacher.module.entry_of(name) for name in permutations)
    gathers = {name: jnp.argsort(order, axis=-1) for name, order in permutations.items()}
    return teacher.tail(entry, forward.entries[entry], gathers)


def shuffled_logits(
    teacher: Network, permutations: dict[str, Int[Array, "copies channels"]], forward: Forward
) -> Float[Array, "batch classes"]:
    """T~: the mean of the copies' logits."""
    return copies_logits(teacher, permutations, forward).mean(axis=0)


def log_kl(
    teacher_logits: Float[Array, "batch classes"], shuffled: Float[Array, "batch classes"]
) -> Float[Array, " batch"]:
    """log10 max(KL(T ‖ T~), 1e-12) per image: what the selection looks at."""
    return jnp.log10(jnp.maximum(losses.kl_divergence(teacher_logits, shuffled), _SMALLEST_KL))


def suspicion(
    config: VaccineConfig,
    vaccine: Vaccine,
    teacher_logits: Float[Array, "batch classes"],
    copies: Float[Array, "copies batch classes"],
) -> Float[Array, " batch"]:
    """φ: 1 for an image on which the shuffled copies follow T, else 0; no gradient."""
    decision = jnp.argmax(teacher_logits, -1)
    shuffled = copies.mean(axis=0)
    if config.suspicion == "argmax":
        phi = jnp.argmax(shuffled, -1) == decision
    elif config.suspicion == "vote":
        phi = jnp.mean(jnp.argmax(copies, -1) == decision, axis=0) >= config.quorum
    else:
        values = log_kl(teacher_logits, shuffled)
        threshold = vaccine.threshold
        if config.suspicion == "outlier":
            median = jnp.median(values)
            threshold = median - config.deviations * 1.4826 * jnp.median(jnp.abs(values - median))
        phi = values < threshold
    return jax.lax.stop_gradient(phi.astype(jnp.float32))


def penalty(
    config: VaccineConfig,
    phi: Float[Array, " batch"],
    teacher_logits: Float[Array, "batch classes"],
    shuffled: Float[Array, "batch classes"],
) -> Float[Array, ""]:
    """−α · Σ φ·KL(T ‖ T~) / max(Σ φ, 1), or divided by the batch; differentiable in both logits."""
    kl = losses.kl_divergence(teacher_logits, shuffled)
    if config.reduction == "class_mean":
        kl = kl / teacher_logits.shape[-1]
    count = jnp.maximum(phi.sum(), 1.0) if config.normalize == "masked" else phi.shape[0]
    return -config.alpha * jnp.sum(phi * kl) / count


def generator_screen(config: VaccineConfig, vaccine: Vaccine, teacher: Network) -> Screen:
    """The vaccine as whoever generates images sees it: the penalty, and weights if `generator_weights`."""

    def screen(images: Array, forward: Forward) -> Screening:
        balance = vaccine.enabled * config.class_balance * losses.class_imbalance(forward.logits)
        if not (config.alpha or config.generator_weights):  # nobody asks T~
            return Screening(jnp.ones(images.shape[0]), balance, {})
        copies = copies_logits(teacher, vaccine.permutations, forward)
        phi = suspicion(config, vaccine, forward.logits, copies) * vaccine.enabled
        weights = 1 - (1 - config.suspicious_weight) * phi if config.generator_weights else jnp.ones_like(phi)
        scalar = penalty(config, phi, forward.logits, copies.mean(axis=0)) + balance
        return Screening(weights, scalar, {"suspicious": phi.mean()})

    return screen


def student_screen(config: VaccineConfig, vaccine: Vaccine, teacher: Network) -> Screen:
    """The vaccine as whoever learns from images sees it: weights by `student_weights`."""

    def screen(images: Array, forward: Forward) -> Screening:
        if config.student_weights == "none":
            return Screening(jnp.ones(images.shape[0]), jnp.zeros(()), {})
        copies = copies_logits(teacher, vaccine.permutations, forward)
        phi = suspicion(config, vaccine, forward.logits, copies) * vaccine.enabled
        if config.student_weights == "paper":
            weights = 1 - phi + config.suspicious_weight * phi
        else:  # each group's mean: the trusted counts 1, the suspicious −w
            count = phi.shape[0]
            trusted = (1 - phi) * count / jnp.maximum(jnp.sum(1 - phi), 1)
            weights = trusted - config.suspicious_weight * phi * count / jnp.maximum(phi.sum(), 1)
        return Screening(weights, jnp.zeros(()), {"suspicious": phi.mean()})

    return screen


def select(
    key: PRNGKeyArray,
    teacher: Network,
    config: VaccineConfig,
    batches: Callable[[int], Float[Array, "batch height width channels"]],
    count: int,
) -> tuple[Vaccine, Float[np.ndarray, "trials images"]]:
    """Algorithm 2: draws T~ until log KL(T ‖ T~) over synthesized images has a tail of suspicious ones.

    Args:
        key: of the draws; every trial starts from the pristine teacher.
        teacher: the network under suspicion.
        config: `tail`, `deviations`, `trials`, `select`.
        batches: index → a batch of synthesized images.
        count: batches to look at.

    Returns:
        The vaccine of the accepted draw, or of the last one with `enabled` 0 if none was; and log KL of all trials.
    """

    @jax.jit
    def measure(permutations, teacher, images):
        forward = teacher(images)
        return log_kl(forward.logits, shuffled_logits(teacher, permutations, forward))

    histories = []
    for trial in range(config.trials):
        permutations = draw(jax.random.fold_in(key, trial), teacher, config)
        values = np.concatenate([np.asarray(measure(permutations, teacher, batches(i))) for i in range(count)])
        histories.append(values)
        threshold = values.mean() - config.deviations * values.std()
        tail = float(np.mean(values < threshold))
        accepted = tail > config.tail
        if accepted or not config.select:
            break
    vaccine = Vaccine(
        permutations=permutations,
        threshold=jnp.asarray(threshold, jnp.float32),
        tail=jnp.asarray(tail, jnp.float32),
        trials=jnp.asarray(trial + 1, jnp.int32),
        enabled=jnp.asarray(float(accepted or not config.select), jnp.float32),
    )
    return vaccine, np.stack(histories)
