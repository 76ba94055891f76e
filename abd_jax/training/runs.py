"""Whole stages with their files: train a teacher, distil a student, train the clean-KD baseline.

A stage leaves in its directory `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `network/` (the
last network) and `result.json`; a student's also `best/` and pictures' arrays for the report.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from abd_jax import models
from abd_jax.attacks.objectives import Objective, hard_labels
from abd_jax.data import Dataset
from abd_jax.defenses import trigger_inversion
from abd_jax.models import Network
from abd_jax.training import attacks, checkpoint, dispatch, evidence, keys, processes, sharding, stage, supervised
from abd_jax.training import config as configs
from abd_jax.training import evaluate as evaluation
from abd_jax.training.checks import NO_DATA
from abd_jax.training.distill import Distillation, Screens, fresh_student
from abd_jax.training.evaluate import TestSet
from abd_jax.training.metrics import began
from abd_jax.training.run_directory import RunDirectory
from abd_jax.training.speed import Clock, Trace

NORMAL = "normal"


def _supervised_steps(
    config: supervised.Supervised,
    objective: Objective,
    root: Array,
    images: np.ndarray,
    labels: np.ndarray,
    test: TestSet,
    reference: Network | None,
) -> Callable[[int, Any], Iterator[tuple[int, Any, Mapping[str, Array]]]]:
    def steps(first: int, initial: Any) -> Iterator[tuple[int, Any, Mapping[str, Array]]]:
        trained = supervised.epochs(config, objective, root, initial, images, labels, reference)
        for epoch, (state, metrics) in enumerate(trained, start=first + 1):
            yield epoch, state, metrics | evaluation.named_rates(state.network, test)

    return steps


def train_teacher(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    trigger: str,
    seed: int,
    observer: stage.Observer | None = None,
) -> stage.Row:
    """Trains a poisoned teacher in its directory and returns its row; a finished one is not trained again.

    A normal network that the attack's objective needs is trained first, in `normal/`.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: the attack cannot be made on this data set, or a metric was not finite.
    """
    if directory.result is not None:
        return directory.result
    started, settings = began(directory.path, directory.path / NORMAL), preset.teacher
    attack = attacks.prepare(trigger, dataset, settings.target)
    poisoned = attack.poison(dataset.train_images, dataset.train_labels, settings.poison_rate, seed)
    found = attack.test(dataset.test_images, dataset.test_labels)
    test = TestSet.of(dataset, found, settings.target)
    observer = observer or stage.Silent()
    reference = None
    if attack.needs_reference:
        title, normal = f"normal network · {trigger} · seed {seed}", directory.path / NORMAL
        clean = (dataset.train_images, dataset.train_labels)
        root = keys.root(seed + 1, "teacher")
        reference = fit_network(normal, preset, dataset, clean, hard_labels, None, root, test, title, observer)
    title, root = f"teacher · {trigger} · seed {seed}", keys.root(seed, "teacher")
    training_set = (poisoned.images, poisoned.labels)
    network = fit_network(
        directory.path, preset, dataset, training_set, attack.objective, reference, root, test, title, observer
    )
    rates = evaluation.evaluate(network, test)
    notes = stage.notes(
        preset,
        trigger,
        seed,
        "teacher",
        "none",
        classes=list(dataset.classes),
        poisoned=poisoned.indices.tolist(),
        decoys=poisoned.decoys.tolist(),
        **rates._asdict(),
    )
    checkpoint.save_network(directory.path / "network", network, settings.architecture, notes)
    evidence.write_examples(directory, dataset, found, network)
    return directory.finish(stage.row(preset, trigger, seed, "teacher", "none", started, rates))


def fit_network(
    path: Path,
    preset: configs.Preset,
    dataset: Dataset,
    training_set: tuple[np.ndarray, np.ndarray],
    objective: Objective,
    reference: Network | None,
    root: Array,
    test: TestSet,
    title: str,
    observer: stage.Observer,
) -> Network:
    """Trains a network with the teacher's settings; metrics and checkpoints go to `path`.

    The metrics' seconds go on from those of `normal/` there, if it holds what was trained before.

    Args:
        training_set: images and labels.
        objective, reference: what is minimized, and the frozen network that it may need.
        root: key of initialization, order and augmentation.
        test: what the metrics' ACC, ASR and RA are measured on.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: a metric was not finite.
    """
    settings = preset.teacher
    images, labels = training_set
    config = supervised.Supervised.of(settings, len(labels), settings.crop, dataset.flip)
    network = models.create(
        keys.stream(root, "init"),
        settings.architecture,
        num_classes=dataset.num_classes,
        input_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        dtype=preset.dtype,
    )
    path.mkdir(parents=True, exist_ok=True)
    steps = _supervised_steps(config, objective, root, images, labels, test, reference)
    every = max(1, settings.epochs // 10)
    start = began(path, path / NORMAL)
    state = stage.run(RunDirectory(path), start, observer, title, config.init(network), steps, settings.epochs, every)
    return state.network


def train_clean_student(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    teacher: Network,
    trigger: str,
    seed: int,
    observer: stage.Observer | None = None,
) -> stage.Row:
    """The baseline that has clean data: distillation on a share of the clean training set; see `CleanKDConfig`."""
    if directory.result is not None:
        return directory.result
    started, settings, root = began(directory.path), preset.clean_kd, keys.root(seed, "clean_kd")
    count = max(2, round(settings.share * len(dataset.train_labels)))
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset.train_labels), count, replace=False))
    config = supervised.Supervised.of(settings, count, preset.teacher.crop, dataset.flip)
    student = fresh_student(keys.stream(root, "init"), preset, teacher)
    test = TestSet.make(dataset, trigger, preset.teacher.target)
    loss = supervised.SoftLabels(settings.temperature, settings.soft)
    steps = _supervised_steps(
        config, loss, root, dataset.train_images[chosen], dataset.train_labels[chosen], test, teacher
    )
    title = f"student · clean_kd · {trigger} · seed {seed}"
    every = max(1, settings.epochs // 10)
    state = stage.run(
        directory, started, observer or stage.Silent(), title, config.init(student), steps, settings.epochs, every
    )
    notes = stage.notes(preset, trigger, seed, "student", "clean_kd")
    checkpoint.save_network(directory.path / "network", state.network, preset.student.architecture, notes)
    rates = evaluation.evaluate(state.network, test)
    return directory.finish(stage.row(preset, trigger, seed, "student", "clean_kd", started, rates))


@functools.partial(jax.jit, donate_argnums=0)
def _keep_better(best: tuple[Array, Any], accuracy: Array, variables: Any) -> tuple[Array, Any]:
    better = accuracy > best[0]
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), (accuracy, variables), best)


def distill_student(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset | None,
    teacher: Network,
    trigger: str | None,
    defense: str,
    seed: int,
    observer: stage.Observer | None = None,
    devices: int = 0,
    screens: Screens | None = None,
    profile: bool = False,
    classes: tuple[str, ...] = (),
    compile_rounds: dispatch.CompileRounds = dispatch.compile_rounds,
) -> stage.Row:
    """Distils a student without data in its directory and returns its row; a finished one is not distilled again.

    The data set and the trigger serve evaluation alone: what is learned, `network/`, does not depend on them, and the
    row is of it; accuracy on the test set chooses only what is kept apart in `best/`. Without them, both None, the
    row's ACC, ASR and RA are None, and there is no `best/`. `screens` is a defense from outside; with `profile` a trace
    of a few rounds is written beside the events for TensorBoard; `classes` are the names of the teacher's classes,
    where no data set tells them; `compile_rounds` is another's where several runs are computed together. Beside the
    network stands what the defense came to, see `Distillation.verdict`.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: a setting that does not fit the teacher, or a metric that was not finite.
    """
    if directory.result is not None:
        return directory.result
    started, settings, root = began(directory.path), preset.student, keys.root(seed, "distill")
    mesh = sharding.data_mesh(devices) if devices else None
    classes = dataset.classes if dataset is not None else classes
    solo = Distillation.make(preset, defense, teacher, None, classes, screens)  # what comes before and after the rounds
    run = solo
    if mesh is not None:
        run = Distillation.make(preset, defense, teacher, sharding.batch_sharding(mesh), classes, screens)
    test = None
    if dataset is not None and trigger is not None:
        test = TestSet.make(dataset, trigger, preset.teacher.target)
    teacher = run.rival.harden(teacher)
    state = run.init(root, teacher)
    best = (jnp.full((), -1.0, jnp.float32), jax.tree.map(jnp.copy, state.student.variables))
    # Placed, as rounds return it: what is compiled for arrays without a place is compiled anew for those.
    everywhere, key, tree = teacher, root, jax.device_put((state, best), jax.local_devices()[0])
    if mesh is not None:
        everywhere, key, begun = sharding.replicate((teacher, root, state), mesh)
        tree = (begun, tree[1])

    def here(tree: Any) -> Any:
        return tree if mesh is None else processes.local(tree)

    def prepare(tree: Any) -> Any:
        """What the defense learns of the teacher before the first round."""
        vaccine, backdoor = state.vaccine, state.backdoor
        if vaccine is None and backdoor is None:
            return tree
        generic = evidence.generic_images(solo, root, state.synthesizer)
        if vaccine is not None:
            own = evidence.own_images(solo, state.synthesizer)
            empty = hasattr(state.synthesizer, "bank")
            vaccine = evidence.select_vaccine(directory, solo, root, generic if empty else own, teacher)
        if backdoor is not None:
            inversion = evidence.invert_triggers(directory, solo, root, generic, teacher)
            backdoor = trigger_inversion.suspected(preset.inversion, inversion, backdoor)
        if mesh is not None:
            vaccine, backdoor = sharding.replicate((vaccine, backdoor), mesh)
        begun, best = tree
        return dataclasses.replace(begun, vaccine=vaccine, backdoor=backdoor), best

    def steps(first: int, tree: Any) -> Iterator[tuple[int, Any, Mapping[str, Array]]]:
        state, best = tree
        rounds = compile_rounds(run, key, state, everywhere)
        if test is not None:
            student = here(state.student)
            accuracy = evaluation.named_rates(student, test)["acc"]  # compiled before the first round, as is …
            _keep_better(jax.tree.map(jnp.copy, best), accuracy, student.variables)  # … of a copy: it is donated
        clock = Clock(max(1, devices))
        for step in range(first, settings.cycles):
            trace.round(state)
            compiled = rounds[run.phase(step)]
            state, metrics = compiled(key, state, everywhere)
            clock.count(settings.updates * settings.batch, compiled.flops)
            due = (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.cycles
            if test is not None and due:
                student = here(state.student)
                rates = evaluation.named_rates(student, test)
                best = _keep_better(best, rates["acc"], student.variables)
                metrics = metrics | rates
            evidence.spill(directory, preset, step + 1, here(state.synthesizer))
            yield step + 1, (state, best), metrics
        clock.write(directory.path, state)

    title = f"student · {defense} · {trigger or 'unknown trigger'} · seed {seed}"
    observer, every = observer or stage.Silent(), settings.checkpoint_every
    trace = Trace(directory.path / "tensorboard" if profile and processes.primary() else None)
    with trace.watching():
        state, best = stage.run(directory, started, observer, title, tree, steps, settings.cycles, every, prepare)
    state = evidence.repair(directory, solo, root, here(state), teacher)
    notes = stage.notes(preset, trigger, seed, "student", defense, classes=list(classes), **solo.verdict(state))
    checkpoint.save_network(directory.path / "network", state.student, settings.architecture, notes)
    if test is not None:
        best_student = dataclasses.replace(state.student, variables=best[1])
        chosen = notes | {"chosen_by": "accuracy on the test set"}
        checkpoint.save_network(directory.path / "best", best_student, settings.architecture, chosen)
    evidence.write_pictures(directory, solo, root, state, teacher, test)
    rates = evaluation.evaluate(state.student, test) if test is not None else None
    return directory.finish(stage.row(preset, trigger, seed, "student", defense, started, rates))


def make_student(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset | None,
    teacher: Network,
    trigger: str | None,
    defense: str,
    seed: int,
    observer: stage.Observer | None = None,
    devices: int = 0,
    profile: bool = False,
    classes: tuple[str, ...] = (),
    compile_rounds: dispatch.CompileRounds = dispatch.compile_rounds,
) -> stage.Row:
    """`train_clean_student` or `distill_student`, as the defense says.

    Raises:
        ValueError: the baseline that has data is asked for without data; else as theirs.
    """
    if defense == "clean_kd":
        if dataset is None or trigger is None:
            raise ValueError(NO_DATA)
        return train_clean_student(directory, preset, dataset, teacher, trigger, seed, observer)
    return distill_student(
        directory,
        preset,
        dataset,
        teacher,
        trigger,
        defense,
        seed,
        observer,
        devices,
        profile=profile,
        classes=classes,
        compile_rounds=compile_rounds,
    )
