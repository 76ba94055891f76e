"""Signs of a backdoor in a network, with no data and no known trigger: images come from an untrained generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from abd_jax import synthesis
from abd_jax.defenses import clp, shuffling_vaccine, trigger_inversion
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.defenses.trigger_inversion import InversionConfig, Trigger
from abd_jax.models import Network
from abd_jax.settings import check_seeds
from abd_jax.synthesis.zskt import ZSKTConfig
from abd_jax.training import dispatch, keys
from abd_jax.training.config import LARGEST_BATCH

SIGNS = {
    "anomaly": "robust deviations by which the smallest trigger found for a class lies under the classes' median: "
    "a backdoor's class takes few pixels",
    "tail": "share of images on which T~, the network T with shuffled channels, follows it unusually closely, by "
    "log KL(T ‖ T~), in the largest of the draws of T~: what is as crude as a trigger survives shuffling",
    "agreement": "share of images to which T~ gives the network's own class",
    "lipschitz": "deviations by which the most amplifying channel stands out of its layer: triggers need such channels",
}
"""Name → what it is, in words; larger is more suspicious."""
_SHOWN = 64


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit.

    Attributes:
        batches, batch: synthesized images that the vaccine's signs look at.
        seed: of generator, images and draws.
        inversion: of the trigger inversion, which looks at images of its own.
        vaccine: of T~.
    """

    batches: int = 4
    batch: int = 128
    seed: int = 0
    inversion: InversionConfig = InversionConfig()
    vaccine: VaccineConfig = VaccineConfig()

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches {self.batches}: allowed are whole numbers from 1")
        if not 2 <= self.batch <= LARGEST_BATCH:
            raise ValueError(f"batch {self.batch}: allowed are whole numbers 2 … {LARGEST_BATCH}")
        check_seeds("seed", self.seed)


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found in one network.

    Attributes:
        signs: name → value; None where the network does not allow the measurement.
        reasons: name → why it does not.
        masks, patterns, sizes, flips: the triggers found, as in `trigger_inversion.Inversion`.
        suspect: the class whose trigger is suspected.
        log_kl: log10 KL(T ‖ T~) of every draw; None without a vaccine.
        threshold: of the draw that counts, the last.
        enabled: whether that draw was accepted.
        channels: kernel → deviations of its channels.
        images: some of those looked at.
        predictions: the network's class for each image that the vaccine's signs look at.
    """

    signs: dict[str, float | None]
    reasons: dict[str, str]
    masks: Float[np.ndarray, "classes height width 1"]
    patterns: Float[np.ndarray, "classes height width channels"]
    sizes: Float[np.ndarray, " classes"]
    flips: Float[np.ndarray, " classes"]
    suspect: int
    log_kl: Float[np.ndarray, "trials images"] | None
    threshold: float
    enabled: bool
    channels: dict[str, Float[np.ndarray, " _"]]
    images: UInt8[np.ndarray, "shown height width channels"]
    predictions: Int[np.ndarray, " images"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Teacher against student, on the same synthesized images.

    Attributes:
        agreement: share of images to which both give the same class.
        transfer: share of images that the teacher's suspected trigger turns into the suspected class in the student.
        teacher_transfer: the same in the teacher.
    """

    agreement: float
    transfer: float
    teacher_transfer: float


def images_for(network: Network, config: AuditConfig, count: int, stream: int) -> Float[Array, "n height width c"]:
    """Images of an untrained generator: the same for any two networks of one shape and normalization."""
    task = synthesis.Task.of(network, batch=config.batch, cycles=1)
    synthesizer = synthesis.create(ZSKTConfig(features=64), task)
    root = keys.root(config.seed, "distill")
    state = synthesizer.init(keys.stream(root, "init", 1))
    return synthesizer.sample(keys.stream(root, "samples", stream), state, count)


def examine(network: Network, config: AuditConfig) -> Examination:
    """Measures every sign.

    Raises:
        ValueError: a network whose images no generator here makes.
    """
    root = keys.root(config.seed, "distill")
    batches = [images_for(network, config, config.batch, index + 1) for index in range(config.batches)]
    signs: dict[str, float | None] = {}
    reasons: dict[str, str] = {}

    found = dispatch.invert_triggers(
        config.inversion,
        keys.stream(root, "inversion"),
        network,
        images_for(network, config, config.inversion.images, 0),
    )
    signs["anomaly"] = float(trigger_inversion.anomaly(found))

    log_kl, threshold, enabled = None, 0.0, False
    try:
        vaccine, log_kl = shuffling_vaccine.select(
            keys.stream(root, "vaccine"), network, config.vaccine, batches.__getitem__, config.batches
        )
    except ValueError as error:
        signs |= {"tail": None, "agreement": None}
        reasons |= dict.fromkeys(("tail", "agreement"), str(error))
    else:
        threshold, enabled = float(vaccine.threshold), bool(vaccine.enabled)
        signs["tail"] = max(_tail(values, config.vaccine.deviations) for values in log_kl)
        signs["agreement"] = _agreement(network, config, batches)

    channels = clp.deviations(clp.bounds(network))
    signs["lipschitz"] = max((float(values.max()) for values in channels.values()), default=None)
    if signs["lipschitz"] is None:
        reasons["lipschitz"] = "no convolution"
    shown = np.concatenate([np.asarray(batch) for batch in batches])[:_SHOWN]
    return Examination(
        signs={name: signs[name] for name in SIGNS},
        reasons=reasons,
        masks=np.asarray(found.triggers.mask, np.float64),
        patterns=np.asarray(found.triggers.pattern, np.float64),
        sizes=np.asarray(found.sizes, np.float64),
        flips=np.asarray(found.flips, np.float64),
        suspect=int(trigger_inversion.suspect(found)),
        log_kl=None if log_kl is None else np.asarray(log_kl, np.float64),
        threshold=threshold,
        enabled=enabled,
        channels=channels,
        images=np.asarray(np.round(np.clip(shown, 0, 1) * 255), np.uint8),
        predictions=np.concatenate([np.asarray(_classes(network, batch)) for batch in batches]),
    )


def compare(teacher: Network, found: Examination, student: Network, config: AuditConfig) -> Comparison:
    """What the student has of the teacher: its answers, and the trigger that was found in it.

    Raises:
        ValueError: they are for images of other shapes, or of other classes.
    """
    sides = [
        (network.input_shape, network.mean, network.std, network.module.num_classes) for network in (teacher, student)
    ]
    if sides[0] != sides[1]:
        raise ValueError(
            f"--student: image shape, mean, std and classes are {sides[1]}, the teacher's {sides[0]}: allowed are equal"
        )
    trigger = Trigger(
        jnp.asarray(found.masks[found.suspect], jnp.float32), jnp.asarray(found.patterns[found.suspect], jnp.float32)
    )
    images = jnp.concatenate([images_for(teacher, config, config.batch, index + 1) for index in range(config.batches)])
    pasted = trigger_inversion.paste(trigger, images)
    before = [np.asarray(_classes(network, images)) for network in (teacher, student)]
    after = [np.asarray(_classes(network, pasted)) for network in (teacher, student)]

    def flipped(which: int) -> float:
        others = before[which] != found.suspect
        return float(np.sum(others & (after[which] == found.suspect)) / max(int(others.sum()), 1))

    return Comparison(float(np.mean(before[0] == before[1])), flipped(1), flipped(0))


@jax.jit
def _classes(network: Network, images: Array) -> Array:
    return jnp.argmax(network(images).logits, axis=-1)


@jax.jit
def _followed(network: Network, permutations: Mapping[str, Array], images: Array) -> Array:
    forward = network(images)
    shuffled = shuffling_vaccine.shuffled_logits(network, dict(permutations), forward)
    return jnp.mean(jnp.argmax(shuffled, -1) == jnp.argmax(forward.logits, -1))


def _agreement(network: Network, config: AuditConfig, batches: Sequence[Array]) -> float:
    """Mean over draws of T~ and images; the draws are new ones, as many as the vaccine's trials."""
    root = keys.stream(keys.root(config.seed, "distill"), "vaccine", 1)
    draws = [
        shuffling_vaccine.draw(jax.random.fold_in(root, trial), network, config.vaccine)
        for trial in range(config.vaccine.trials)
    ]
    return float(np.mean([_followed(network, permutations, batch) for permutations in draws for batch in batches]))


def _tail(values: np.ndarray, deviations: float) -> float:
    return float(np.mean(values < values.mean() - deviations * values.std()))
