"""Whether a teacher, a preset and a data set fit together, told before anything is computed or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from abd_jax import data, models
from abd_jax.data import Dataset
from abd_jax.defenses import shuffling_vaccine, trigger_inversion
from abd_jax.models import Network
from abd_jax.training import config as configs
from abd_jax.training import sharding
from abd_jax.training.distill import Distillation
from abd_jax.training.evaluate import kind

NO_DATA = "defense 'clean_kd' learns from a data set, and none fits this teacher"


def fit_to_teacher(preset: configs.Preset, teacher: Network, notes: Mapping[str, Any]) -> configs.Preset:
    """The preset with the trigger and target that the teacher's notes tell, for evaluation.

    Raises:
        ValueError: the teacher is of another data set or shape than the preset.
    """
    if notes.get("dataset") != preset.dataset:
        raise ValueError(f"--teacher: is of data set {notes.get('dataset')!r}; this preset's is {preset.dataset!r}")
    settings = dataclasses.replace(preset.teacher, target=int(notes["target"]), architecture=str(notes["architecture"]))
    return dataclasses.replace(preset, trigger=str(notes["trigger"]), teacher=settings)


def fit_to_file(preset: configs.Preset, teacher: Network, notes: Mapping[str, Any]) -> tuple[configs.Preset, str]:
    """The preset for a teacher from a stranger's file, and why its data set cannot measure the student; empty: it can.

    Raises:
        ValueError: the target is no class of the teacher.
    """
    classes = teacher.module.num_classes
    if preset.teacher.target >= classes:
        raise ValueError(
            f"teacher.target {preset.teacher.target}: allowed are the teacher's classes, 0 … {classes - 1}"
        )
    settings = dataclasses.replace(preset.teacher, architecture=str(notes["architecture"]))
    known = data.info(preset.dataset)
    there, here = kind(known.image_shape, len(known.classes)), kind(teacher.input_shape, classes)
    reason = "" if there == here else f"the teacher is for {here}, data set {preset.dataset} has {there}"
    return dataclasses.replace(preset, teacher=settings), reason


def check_students(preset: configs.Preset, dataset: Dataset, defenses: Iterable[str], devices: int = 0) -> None:
    """`check_student` for every defense before there is a teacher: on one of zeros, and so of its shapes.

    Raises:
        ValueError: as `check_student`.
    """
    teacher = models.abstract(
        preset.teacher.architecture,
        num_classes=dataset.num_classes,
        input_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        dtype=preset.dtype,
    )
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), teacher.variables)
    for defense in defenses:
        check_student(preset, dataset, dataclasses.replace(teacher, variables=zeros), defense, dataset.classes, devices)


def check_student(
    preset: configs.Preset,
    dataset: Dataset | None,
    teacher: Network,
    defense: str,
    classes: tuple[str, ...] = (),
    devices: int = 0,
) -> None:
    """Whether a student can be made so from this teacher, before anything is written.

    Raises:
        ValueError: what the method, the defense, attention transfer or the devices need, and is not there.
    """
    if devices:
        sharding.data_mesh(devices)
        if preset.student.batch % devices:
            raise ValueError(
                f"devices {devices}: student.batch {preset.student.batch} cannot be split over so many evenly"
            )
    if defense == "clean_kd":
        if dataset is None:
            raise ValueError(NO_DATA)
        return
    run = Distillation.make(preset, defense, teacher, classes=classes)
    _check_defense(run, teacher.module.num_classes)
    rival = run.rival
    teacher = rival.harden(teacher)
    jax.eval_shape(lambda key: rival.init(key, teacher.input_shape), jax.random.key(0))
    if configs.uses_vaccine(defense):
        if not preset.vaccine.acts(preset.synthesis.updates):
            raise ValueError(
                f"defense {defense}: with method {preset.method} this vaccine would change nothing; "
                "say --vaccine.student-weights paper"
            )
        shuffling_vaccine.draw(jax.random.key(0), teacher, preset.vaccine)


def _check_defense(run: Distillation, classes: int) -> None:
    """Raises ValueError if a part of the defense cannot come to anything, whatever the teacher is."""
    preset = run.preset
    if configs.uses_retrospection(run.defense) and not run.retrospective:
        raise ValueError(
            f"retrospection.start_fraction {preset.retrospection.start_fraction}: of {preset.student.cycles} cycles "
            f"none is left for defense {run.defense!r}; say a smaller one, or more student.cycles"
        )
    bar = trigger_inversion.TWO_CLASSES
    if (run.censors or run.pastes) and classes < 3 and preset.inversion.anomaly > bar:
        raise ValueError(
            f"defense {run.defense!r}: of {classes} classes' triggers none stands out by more than {bar:.2f}, so "
            f"inversion.anomaly {preset.inversion.anomaly:g} suspects none; say {bar:.2f} or less, or take the form "
            "that inverts no trigger (vaccine.censor off, retrospection.perturb student)"
        )
