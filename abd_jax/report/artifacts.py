"""What a run leaves beside its result: curve, examples, samples, vaccine, inversion; None or empty if not there yet."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from abd_jax.report.files import is_number, read_arrays, read_text


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rates over training, at the steps at which they were measured, and the last step that was logged at all."""

    steps: tuple[int, ...] = ()
    acc: tuple[float, ...] = ()
    asr: tuple[float, ...] = ()
    last_step: int = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """Test images with and without the trigger, and what the teacher says of them."""

    clean: UInt8[np.ndarray, "n height width channels"]
    triggered: UInt8[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]
    clean_predictions: Int[np.ndarray, " n"]
    triggered_predictions: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images synthesized at the end of a run, and the teacher's class for each."""

    images: UInt8[np.ndarray, "n height width channels"]
    predictions: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Vaccine:
    """What the choice of the shuffled teachers T~ saw, and its verdict.

    Attributes:
        log_kl: log10 KL(T ‖ T~) of every trial on synthesized images; the last trial is the one that counts.
        threshold: below it lies the tail.
        tail: share of the last trial's images below the threshold.
        trials: draws that were made.
        enabled: whether a draw was kept.
        tail_bar: the share that the tail had to exceed.
        synthetic, clean, triggered: log10 KL of final synthesized and of test images, for diagnosis only.
    """

    log_kl: Float[np.ndarray, "trials images"]
    threshold: float
    tail: float
    trials: int
    enabled: bool
    tail_bar: float
    synthetic: Float[np.ndarray, " synthetic"] | None = None
    clean: Float[np.ndarray, " clean"] | None = None
    triggered: Float[np.ndarray, " triggered"] | None = None


@dataclasses.dataclass(frozen=True)
class Inversion:
    """The smallest trigger that was found for each class on images of the fresh generator, and the verdict.

    Attributes:
        masks: how much of each pixel the trigger replaces, in [0, 1].
        patterns: what it puts there, in [0, 1].
        sizes: sum of each mask, in pixels.
        flips: share of the other classes' images that the trigger turns into the class.
        anomalies: how many robust deviations each size lies below the median of all.
        suspect: the class of the smallest trigger; a backdoor towards it is suspected if that stands out enough.
    """

    masks: Float[np.ndarray, "classes height width 1"]
    patterns: Float[np.ndarray, "classes height width channels"]
    sizes: Float[np.ndarray, " classes"]
    flips: Float[np.ndarray, " classes"]
    anomalies: Float[np.ndarray, " classes"]
    suspect: int


def read_curve(path: Path) -> Curve:
    """ACC and ASR of `metrics.jsonl`; a last line without its end, as a killed run leaves it, is passed over."""
    if not path.is_file():
        return Curve()
    text = read_text(path)
    lines = text.split("\n")
    steps, acc, asr, last = [], [], [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is not JSON") from None
        if not isinstance(entry, dict) or not is_number(entry.get("step")) or not math.isfinite(entry["step"]):
            raise ValueError(f"{path}: line {number}: expected an object with a number `step`")
        last = max(last, int(entry["step"]))
        if "acc" not in entry or "asr" not in entry:
            continue
        if not all(is_number(entry[name]) and 0 <= entry[name] <= 1 for name in ("acc", "asr")):
            raise ValueError(f"{path}: line {number}: acc and asr must be numbers in [0, 1]")
        steps.append(int(entry["step"]))
        acc.append(float(entry["acc"]))
        asr.append(float(entry["asr"]))
    return Curve(tuple(steps), tuple(acc), tuple(asr), last)


def read_examples(path: Path) -> Examples | None:
    """`examples.npz` of a teacher."""
    arrays = read_arrays(path, "clean", "triggered", "labels", "clean_predictions", "triggered_predictions")
    if arrays is None:
        return None
    _check_images(path, "clean", arrays["clean"])
    _check_images(path, "triggered", arrays["triggered"])
    if arrays["clean"].shape != arrays["triggered"].shape:
        raise ValueError(f"{path}: clean and triggered images differ in shape")
    for name in ("labels", "clean_predictions", "triggered_predictions"):
        _check_classes(path, name, arrays[name], len(arrays["clean"]))
    return Examples(**arrays)


def read_samples(path: Path) -> Samples | None:
    """`samples.npz` of a student."""
    arrays = read_arrays(path, "images", "predictions")
    if arrays is None:
        return None
    _check_images(path, "images", arrays["images"])
    _check_classes(path, "predictions", arrays["predictions"], len(arrays["images"]))
    return Samples(**arrays)


def read_vaccine(path: Path) -> Vaccine | None:
    """`vaccine.npz` of a student."""
    scalars = ("threshold", "tail", "trials", "enabled", "tail_bar")
    diagnosis = ("synthetic", "clean", "triggered")
    arrays = read_arrays(path, "log_kl", *scalars, optional=diagnosis)
    if arrays is None:
        return None
    for name, array in arrays.items():
        dimensions = 0 if name in scalars else 2 if name == "log_kl" else 1
        fits = array.ndim == dimensions and array.dtype.kind in "fiub" and array.size > 0
        if not fits or not np.isfinite(array).all():
            raise ValueError(f"{path}: {name}: expected finite numbers in {dimensions} dimensions, at least one")
    return Vaccine(
        log_kl=arrays["log_kl"].astype(np.float64),
        threshold=float(arrays["threshold"]),
        tail=float(arrays["tail"]),
        trials=int(arrays["trials"]),
        enabled=bool(arrays["enabled"]),
        tail_bar=float(arrays["tail_bar"]),
        **{name: arrays[name].astype(np.float64) for name in diagnosis if name in arrays},
    )


def read_inversion(path: Path) -> Inversion | None:
    """`inversion.npz` of a student; None too for one of an older version, which has no `anomalies`."""
    arrays = read_arrays(path, "masks", "patterns", "sizes", "flips", "suspect", optional=("anomalies",))
    if arrays is None or "anomalies" not in arrays:
        return None
    masks, patterns, anomalies, suspect = (arrays[name] for name in ("masks", "patterns", "anomalies", "suspect"))
    if masks.ndim != 4 or len(masks) < 2 or 0 in masks.shape:
        raise ValueError(f"{path}: masks: expected [2 or more classes, height, width, 1], found {list(masks.shape)}")
    classes, height, width = masks.shape[:3]
    channels = 1 if patterns.shape[-1:] == (1,) else 3
    for name, shape, limit in (
        ("masks", (classes, height, width, 1), 1),
        ("patterns", (classes, height, width, channels), 1),
        ("sizes", (classes,), height * width),
        ("flips", (classes,), 1),
    ):
        array = arrays[name]
        fits = array.dtype.kind == "f" and array.shape == shape
        if not fits or not ((array >= 0) & (array <= limit)).all():
            raise ValueError(f"{path}: {name}: expected numbers in [0, {limit}] of shape {list(shape)}")
    if anomalies.dtype.kind != "f" or anomalies.shape != (classes,) or not np.isfinite(anomalies).all():
        raise ValueError(f"{path}: anomalies: expected {classes} finite numbers")
    if suspect.dtype.kind not in "iu" or suspect.ndim != 0 or not 0 <= suspect < classes:
        raise ValueError(f"{path}: suspect: expected one whole number from 0 to {classes - 1}")
    return Inversion(
        suspect=int(suspect),
        **{name: arrays[name].astype(np.float64) for name in ("masks", "patterns", "sizes", "flips", "anomalies")},
    )


def _check_images(path: Path, name: str, images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(
            f"{path}: {name}: expected uint8 [n, height, width, 1 or 3], found {images.dtype} {list(images.shape)}"
        )


def _check_classes(path: Path, name: str, classes: np.ndarray, count: int) -> None:
    if classes.dtype.kind not in "iu" or classes.shape != (count,):
        raise ValueError(f"{path}: {name}: expected {count} whole numbers, found {classes.dtype} {list(classes.shape)}")
