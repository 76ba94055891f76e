"""What a student's stage does before and after its rounds, and the arrays that it keeps of that for the report."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from abd_jax.attacks.poison import Triggered
from abd_jax.data import Dataset
from abd_jax.defenses import shuffling_vaccine, trigger_inversion
from abd_jax.models import Network
from abd_jax.synthesis import bank as banks
from abd_jax.synthesis.zskt import ZSKT, ZSKTConfig
from abd_jax.training import config as configs
from abd_jax.training import dispatch, keys
from abd_jax.training import evaluate as evaluation
from abd_jax.training.distill import Distillation
from abd_jax.training.evaluate import TestSet
from abd_jax.training.run_directory import RunDirectory, write_arrays, write_json

logger = logging.getLogger(__name__)
Images = Callable[[PRNGKeyArray, int], Array]
"""(key, count) → images."""
SELECTION_BATCHES = 16
EXAMPLES = 8
SAMPLES = 64


def write_examples(directory: RunDirectory, dataset: Dataset, found: Triggered, network: Network) -> None:
    """First triggered test images with what they were without the trigger, and what the teacher says of both."""
    sources = found.sources[:EXAMPLES]
    clean, triggered = dataset.test_images[sources], found.images[:EXAMPLES]
    write_arrays(
        directory.path / "examples.npz",
        clean=clean,
        triggered=triggered,
        labels=dataset.test_labels[sources],
        clean_predictions=np.asarray(evaluation.predict(network, clean)),
        triggered_predictions=np.asarray(evaluation.predict(network, triggered)),
    )


def own_images(run: Distillation, synthesizer: Any) -> Images:
    """What the synthesizer samples in that state; compiled, since a batch over several devices may need padding."""
    sample = jax.jit(run.synthesizer.sample, static_argnames="count")
    return lambda key, count: sample(key, synthesizer, count=count)


def generic_images(run: Distillation, root: Array, synthesizer: Any) -> Images:
    """Images of an untrained generator, which is the fresh synthesizer's own if it is ZSKT.

    What a defense looks at before the first round. Other methods' first images serve it less or not at all: an image
    bank is empty, and on patches of a photograph the classes' triggers differ so much in size that none stands out.
    """
    if isinstance(run.synthesizer, ZSKT):
        return own_images(run, synthesizer)
    height, width, channels = run.synthesizer.task.image_shape
    shape = (-(-height // 4) * 4, -(-width // 4) * 4, channels)
    generator = ZSKT(ZSKTConfig(features=64), dataclasses.replace(run.synthesizer.task, image_shape=shape))
    sample, state = jax.jit(generator.sample, static_argnames="count"), generator.init(keys.stream(root, "init", 2))
    return lambda key, count: sample(key, state, count=count)[:, :height, :width]


def select_vaccine(
    directory: RunDirectory, run: Distillation, root: Array, images: Images, teacher: Network
) -> shuffling_vaccine.Vaccine:
    """Chooses T~ on first images, and keeps the evidence for the report."""
    config = run.preset.vaccine
    vaccine, histories = shuffling_vaccine.select(
        keys.stream(root, "vaccine"),
        teacher,
        config,
        lambda index: images(keys.stream(root, "vaccine", index + 1), run.preset.student.batch),
        SELECTION_BATCHES,
    )
    write_arrays(
        directory.path / "vaccine.npz",
        log_kl=histories,
        threshold=np.asarray(vaccine.threshold),
        tail=np.asarray(vaccine.tail),
        trials=np.asarray(vaccine.trials),
        enabled=np.asarray(vaccine.enabled),
        tail_bar=np.asarray(config.tail),
    )
    return vaccine


def invert_triggers(
    directory: RunDirectory, run: Distillation, root: Array, images: Images, teacher: Network
) -> trigger_inversion.Inversion:
    """Inverts a trigger for each class on first images, and keeps them for the report."""
    config = run.preset.inversion
    logger.info("inverting a trigger for each of the teacher's %d classes", teacher.module.num_classes)
    first = images(keys.stream(root, "inversion"), config.images)
    inversion = dispatch.invert_triggers(config, keys.stream(root, "inversion", 1), teacher, first)
    write_arrays(
        directory.path / "inversion.npz",
        masks=np.asarray(inversion.triggers.mask),
        patterns=np.asarray(inversion.triggers.pattern),
        sizes=np.asarray(inversion.sizes),
        flips=np.asarray(inversion.flips),
        suspect=np.asarray(trigger_inversion.suspect(inversion)),
        anomalies=np.asarray(trigger_inversion.anomalies(inversion.sizes)),
    )
    target, found = int(trigger_inversion.suspect(inversion)), float(trigger_inversion.anomaly(inversion))
    verdict = "suspected" if found >= config.anomaly else "not suspected"
    logger.info(
        "the smallest trigger leads to class %d, %s: anomaly %.1f, the bar is %g",
        target,
        verdict,
        found,
        config.anomaly,
    )
    return inversion


def repair(directory: RunDirectory, run: Distillation, root: Array, state: Any, teacher: Network) -> Any:
    """What a rival defense does after distillation, on images of the final synthesizer; notes go to `rival.json`."""
    images = own_images(run, state.synthesizer)

    def sample(index: int) -> Array:
        return images(keys.stream(root, "samples", 1 + index), run.preset.student.batch)

    student, notes = run.rival.repair(keys.stream(root, "rival"), state.student, teacher, sample)
    if notes:
        write_json(directory.path / "rival.json", notes)
    return dataclasses.replace(state, student=student)


def spill(directory: RunDirectory, preset: configs.Preset, step: int, synthesizer: Any) -> None:
    """Keeps a round's new images in `bank/`, one file a round, if the bank's settings say so; waits for the device."""
    synthesis: Any = preset.synthesis
    if not hasattr(synthesis, "bank") or not synthesis.bank.spill:
        return
    (directory.path / "bank").mkdir(exist_ok=True)
    images = banks.newest(synthesizer.bank, synthesis.batch)[::-1]
    write_arrays(directory.path / "bank" / f"{step:06d}.npz", images=images)


def write_pictures(
    directory: RunDirectory, run: Distillation, root: Array, state: Any, teacher: Network, test: TestSet | None
) -> None:
    """Final images, the image bank as a picture, and what the vaccine says of images, clean and triggered ones too."""
    if hasattr(state.synthesizer, "bank"):
        banks.write_grid(state.synthesizer.bank, directory.path / "bank.png")
    images = own_images(run, state.synthesizer)(keys.stream(root, "samples"), SAMPLES)
    pictures = np.asarray(jnp.round(jnp.clip(images, 0, 1) * 255), np.uint8)
    predictions = np.asarray(jnp.argmax(teacher(images).logits, axis=-1))
    write_arrays(directory.path / "samples.npz", images=pictures, predictions=predictions)
    if state.vaccine is None:
        return

    @jax.jit
    def measure(teacher: Network, images: Array) -> Array:
        forward = teacher(images)
        shuffled = shuffling_vaccine.shuffled_logits(teacher, state.vaccine.permutations, forward)
        return shuffling_vaccine.log_kl(forward.logits, shuffled)

    path = directory.path / "vaccine.npz"
    with np.load(path) as stored:
        selection = dict(stored)
    shown = {"synthetic": images}
    if test is not None:
        shown["clean"] = test.images[: evaluation.BATCH] / 255.0
        shown["triggered"] = test.triggered[: evaluation.BATCH] / 255.0
    measured = {name: np.asarray(measure(teacher, batch)) for name, batch in shown.items()}
    write_arrays(path, **(selection | measured))  # a run stopped between here and its result has them already
