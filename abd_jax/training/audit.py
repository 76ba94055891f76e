"""What can be said of a network with no data and no known trigger: signs of a backdoor, and how often each is wrong.

Images come from an untrained generator. Each sign is one number, larger where there is more reason for suspicion; its
threshold and its errors are measured on a zoo of clean and poisoned teachers (`calibrate`), never assumed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from abd_jax import synthesis
from abd_jax.attacks.attack import BY_OBJECTIVE
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
ROWS_FILE = "calibration.json"
_SHOWN = 64
_BACKDOORED = 0.5
"""ASR from which on a teacher of a zoo counts as poisoned."""


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


@dataclasses.dataclass(frozen=True)
class Row:
    """One teacher of a zoo: what is known of it, and its signs."""

    path: str
    trigger: str
    dataset: str
    architecture: str
    digest: str
    asr: float
    poisoned: bool
    signs: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """How good one sign is on a zoo.

    Attributes:
        auc: how often a poisoned teacher's value lies above a clean one's, ties counting half.
        threshold: from which on the sign speaks for a backdoor, chosen on all teachers; None: the sign is no better
            than chance, see `beats_chance`.
        missed, false_alarms: errors and cases; each teacher is judged by the threshold that all others choose, without
            those of its own trigger.
    """

    auc: float
    threshold: float | None
    missed: tuple[int, int]
    false_alarms: tuple[int, int]


def auc(clean: Sequence[float], poisoned: Sequence[float]) -> float:
    """Area under the ROC curve: how often a poisoned value lies above a clean one, ties counting half."""
    pairs = [(p > c) + 0.5 * (p == c) for p in poisoned for c in clean]
    return float(np.mean(pairs)) if pairs else math.nan


def beats_chance(area: float, clean: int, poisoned: int) -> bool:
    """Whether an AUC is above ½ by more than luck: Mann–Whitney's one-sided test at 5 %, in its normal approximation.

    Args:
        area: the AUC.
        clean, poisoned: number of teachers.
    """
    return area > 0.5 + 1.645 * math.sqrt((clean + poisoned + 1) / (12 * clean * poisoned))


def best_threshold(clean: Sequence[float], poisoned: Sequence[float]) -> float | None:
    """The midpoint of two neighboring values with the largest (hits − false alarms); of equals, in the widest gap.

    None if none beats chance.
    """
    values = sorted({*clean, *poisoned})
    best: tuple[float, float] = (0.0, 0.0)
    chosen = None
    for low, high in itertools.pairwise(values):
        middle = (low + high) / 2
        gain = np.mean([p > middle for p in poisoned]) - np.mean([c > middle for c in clean])
        if gain > 1e-9 and (round(float(gain), 9), high - low) > best:
            best, chosen = (round(float(gain), 9), high - low), middle
    return chosen


def roc(clean: Sequence[float], poisoned: Sequence[float]) -> list[tuple[float, float]]:
    """(share of false alarms, share of hits) at every threshold, from (0, 0) to (1, 1)."""
    thresholds = sorted({*clean, *poisoned}, reverse=True)
    points = [
        (float(np.mean([c >= at for c in clean])), float(np.mean([p >= at for p in poisoned]))) for at in thresholds
    ]
    return [(0.0, 0.0), *points]


def calibrate(rows: Sequence[Row]) -> dict[str, Calibrated]:
    """Every sign's quality on a zoo; signs that were measured on no clean or no poisoned teacher are left out.

    Raises:
        ValueError: fewer than two clean teachers, or poisoned ones of fewer than two triggers.
    """
    clean_rows, poisoned_rows = split(rows)
    triggers = sorted({row.trigger for row in poisoned_rows})
    if len(clean_rows) < 2 or len(triggers) < 2:
        raise ValueError(
            f"{len(clean_rows)} clean teacher(s) and poisoned ones of {len(triggers)} trigger(s): "
            "a calibration needs 2 clean ones and 2 triggers, so that each is judged by the others"
        )
    found = {}
    for name in SIGNS:
        values = [(row, row.signs.get(name)) for row in rows]
        known = [(row, value) for row, value in values if value is not None]
        if {row.poisoned for row, _ in known} != {True, False}:
            continue

        def threshold(kept: Sequence[tuple[Row, float]]) -> float | None:
            return best_threshold(
                [value for row, value in kept if not row.poisoned], [value for row, value in kept if row.poisoned]
            )

        errors = {True: [0, 0], False: [0, 0]}
        for judged, value in known:
            held_out = [
                (row, other)
                for row, other in known
                if row is not judged and not (judged.poisoned and row.poisoned and row.trigger == judged.trigger)
            ]
            bar = threshold(held_out)
            alarm = bar is not None and value > bar
            errors[judged.poisoned][0] += alarm != judged.poisoned
            errors[judged.poisoned][1] += 1
        area = auc([v for row, v in known if not row.poisoned], [v for row, v in known if row.poisoned])
        found[name] = Calibrated(
            auc=area,
            threshold=threshold(known) if beats_chance(area, errors[False][1], errors[True][1]) else None,
            missed=(errors[True][0], errors[True][1]),
            false_alarms=(errors[False][0], errors[False][1]),
        )
    return found


def split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The clean teachers and the poisoned ones."""
    return [row for row in rows if not row.poisoned], [row for row in rows if row.poisoned]


def row_of(facts: Mapping[str, Any], found: Examination) -> Row | None:
    """A zoo's teacher with its signs; None if it was attacked in vain: neither clean nor backdoored.

    An attack by the objective poisons no image; the Nasty Teacher's has no backdoor either.

    Args:
        facts: as `zoo.teachers` lists them.
        found: its examination.
    """
    asr = facts["asr"] or 0.0
    attacked = bool(facts["poisoned"]) or facts["trigger"] in BY_OBJECTIVE
    if asr < _BACKDOORED and attacked:
        return None
    poisoned = asr >= _BACKDOORED
    return Row(
        path=str(facts["path"]),
        trigger=str(facts["trigger"]) if poisoned else "none",
        dataset=str(facts["dataset"]),
        architecture=str(facts["architecture"]),
        digest=str(facts["digest"]),
        asr=float(asr),
        poisoned=poisoned,
        signs=found.signs,
    )


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A calibration as JSON: the rows, from which all else follows."""
    path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


def read_rows(path: Path | None = None) -> list[Row]:
    """A calibration's rows; None: the one that comes with the package, of digits teachers.

    Raises:
        ValueError: not there, or no calibration.
    """
    if path is None:
        return _parse(resources.files("abd_jax.training").joinpath(ROWS_FILE).read_text())
    file = path / ROWS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"--calibration {path}: no such file; `audit --calibrate ZOO --out DIR` makes one")
    try:
        rows = _parse(file.read_text())
        calibrate(rows)
    except ValueError as error:
        raise ValueError(f"--calibration {file}: {error}") from error
    return rows


def _parse(text: str) -> list[Row]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no calibration ({' '.join(str(error).split())[:160]})") from error
    if not isinstance(content, list):
        raise ValueError(f"no calibration (expected a list, found {type(content).__name__})")
    return [_row(raw) for raw in content]


def _row(raw: object) -> Row:
    kinds: dict[str, type | tuple[type, ...]] = {"asr": (int, float), "poisoned": bool, "signs": dict}
    names = [field.name for field in dataclasses.fields(Row)]
    if not isinstance(raw, dict) or sorted(raw) != sorted(names):
        raise ValueError(f"no calibration (each teacher needs {', '.join(names)})")
    for name in names:
        if not isinstance(raw[name], kinds.get(name, str)):
            raise ValueError(f"no calibration ({name} is of type {type(raw[name]).__name__})")
    values = list(raw["signs"].values())
    numbers = all(value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in values)
    if set(raw["signs"]) != set(SIGNS) or not numbers:
        raise ValueError(f"no calibration (signs: expected a number or null for each of {', '.join(SIGNS)})")
    return Row(**{**raw, "asr": float(raw["asr"])})
