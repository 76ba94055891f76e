"""Whole stages with their files: train a teacher, distil a student, train the clean-KD baseline.

A stage leaves in its directory `config.json`, `metrics.jsonl`, TensorBoard events, `checkpoints/`, `network/` (the
last network) and `result.json`; a student's also `best/` and pictures' arrays for the report.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from abd_jax import data, models
from abd_jax.attacks.objectives import Objective, hard_labels
from abd_jax.attacks.poison import Triggered
from abd_jax.data import Dataset
from abd_jax.defenses import shuffling_vaccine, trigger_inversion
from abd_jax.models import Network
from abd_jax.synthesis import bank as banks
from abd_jax.synthesis.zskt import ZSKT, ZSKTConfig
from abd_jax.training import attacks, checkpoint, dispatch, keys, sharding
from abd_jax.training import config as configs
from abd_jax.training import evaluate as evaluation
from abd_jax.training import teacher as supervised
from abd_jax.training.checkpoint import Checkpoints
from abd_jax.training.distill import Distillation, Screens
from abd_jax.training.evaluate import TestSet
from abd_jax.training.metrics import MetricsWriter, NonFiniteError, began
from abd_jax.training.run_directory import RunDirectory, write_arrays, write_json

Row = dict[str, Any]
Images = Callable[..., Array]
"""(key, count) → images; `count` by name."""
SELECTION_BATCHES = 16
EXAMPLES = 8
SAMPLES = 64
NORMAL = "normal"
_NO_DATA = "defense 'clean_kd' learns from a data set, and none fits this teacher"


class Interrupted(Exception):
    """SIGTERM came; the state was saved."""


@runtime_checkable
class Observer(Protocol):
    """Who is told how far a stage is; called once a step with the metrics of the step before, if there are any."""

    def begin(self, title: str, total: int, done: int) -> None: ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def end(self) -> None: ...


class Silent:
    """The observer that shows nothing."""

    def begin(self, title: str, total: int, done: int) -> None: ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def end(self) -> None: ...


@contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGTERM has come; only the main thread can listen for it."""
    arrived = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield arrived.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: arrived.set())
    try:
        yield arrived.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _loop(
    directory: RunDirectory,
    started: float,
    observer: Observer,
    title: str,
    tree: Any,
    steps: Callable[[int, Any], Iterator[tuple[int, Any, Mapping[str, Array]]]],
    total: int,
    checkpoint_every: int,
    prepare: Callable[[Any], Any] = lambda tree: tree,
) -> Any:
    """Runs a stage's steps with checkpoints, metrics, progress and termination; returns the final tree.

    A step's metrics are read before its state is saved, so that no checkpoint follows a loss that is not finite.

    Args:
        started: when the stage began, see `metrics.began`.
        tree: the initial state; replaced by the newest whole checkpoint's if there is one.
        steps: (first step, tree) → (finished steps, tree, metrics) after each step.
        total: number of steps.
        checkpoint_every: steps between two checkpoints.
        prepare: completes the initial state where there is no checkpoint.

    Raises:
        Interrupted: SIGTERM came.
        ValueError: a metric was not finite.
    """
    with closing(Checkpoints(directory.path / "checkpoints")) as checkpoints:
        first, tree = checkpoints.load(tree) or (0, prepare(tree))
        with _termination() as terminated:
            last_saved = first
            observer.begin(title, total, first)
            writer = MetricsWriter(directory.path, started, first_step=first + 1)
            try:
                for done, latest, metrics in steps(first, tree):
                    tree = latest
                    observer.advance(done, writer.write(done, metrics) or {})
                    if done % checkpoint_every == 0 or done == total or terminated():
                        observer.advance(done, writer.flush() or {})
                        checkpoints.save(done, tree)
                        last_saved = done
                    if terminated() and done < total:
                        raise Interrupted(f"{directory.path}: saved at step {done} of {total}; go on with --resume")
            except NonFiniteError as error:
                writer.abandon()
                last = (
                    f"the last good checkpoint is of step {last_saved}" if last_saved else "no checkpoint precedes it"
                )
                raise ValueError(f"{directory.path}: {error}; {last}") from error
            finally:
                writer.close()
                observer.end()
    return tree


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
            yield epoch, state, metrics | _named_rates(state.network, test)

    return steps


def _named_rates(network: Network, test: TestSet) -> dict[str, Array]:
    return dict(zip(("acc", "asr", "ra"), evaluation.rates(network, test), strict=True))


def _row(
    preset: configs.Preset,
    trigger: str | None,
    seed: int,
    role: str,
    defense: str,
    started: float,
    rates: evaluation.Rates | None,
) -> Row:
    return {
        "preset": preset.name,
        "dataset": None if trigger is None else preset.dataset,
        "method": preset.method,
        "trigger": trigger,
        "seed": seed,
        "role": role,
        "defense": defense,
        **(rates._asdict() if rates else dict.fromkeys(evaluation.Rates._fields)),
        "seconds": round(time.perf_counter() - started, 1),
    }


def _notes(
    preset: configs.Preset, trigger: str | None, seed: int, role: str, defense: str, **more: Any
) -> dict[str, Any]:
    return {
        "role": role,
        "dataset": None if trigger is None else preset.dataset,
        "trigger": trigger,
        "target": None if trigger is None else preset.teacher.target,
        "seed": seed,
        "defense": defense,
        **more,
    }


def train_teacher(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    trigger: str,
    seed: int,
    observer: Observer | None = None,
) -> Row:
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
    observer = observer or Silent()
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
    notes = _notes(
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
    _write_examples(directory, dataset, found, network)
    return directory.finish(_row(preset, trigger, seed, "teacher", "none", started, rates))


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
    observer: Observer,
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
    batch = min(settings.batch, len(labels))
    config = supervised.Supervised(
        steps=settings.epochs * (len(labels) // batch),
        batch=batch,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        crop=settings.crop,
        flip=dataset.flip,
    )
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
    state = _loop(RunDirectory(path), start, observer, title, config.init(network), steps, settings.epochs, every)
    return state.network


def _write_examples(directory: RunDirectory, dataset: Dataset, found: Triggered, network: Network) -> None:
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


def train_clean_student(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset,
    teacher: Network,
    trigger: str,
    seed: int,
    observer: Observer | None = None,
) -> Row:
    """The baseline that has clean data: distillation on a share of the clean training set; see `CleanKDConfig`."""
    if directory.result is not None:
        return directory.result
    started, settings, root = began(directory.path), preset.clean_kd, keys.root(seed, "clean_kd")
    count = max(2, round(settings.share * len(dataset.train_labels)))
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset.train_labels), count, replace=False))
    batch = min(settings.batch, count)
    config = supervised.Supervised(
        steps=settings.epochs * (count // batch),
        batch=batch,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        crop=preset.teacher.crop,
        flip=dataset.flip,
    )
    student = _fresh_student(preset, teacher, root)
    test = TestSet.make(dataset, trigger, preset.teacher.target)
    loss = supervised.SoftLabels(settings.temperature, settings.soft)
    steps = _supervised_steps(
        config, loss, root, dataset.train_images[chosen], dataset.train_labels[chosen], test, teacher
    )
    title = f"student · clean_kd · {trigger} · seed {seed}"
    every = max(1, settings.epochs // 10)
    state = _loop(directory, started, observer or Silent(), title, config.init(student), steps, settings.epochs, every)
    notes = _notes(preset, trigger, seed, "student", "clean_kd")
    checkpoint.save_network(directory.path / "network", state.network, preset.student.architecture, notes)
    rates = evaluation.evaluate(state.network, test)
    return directory.finish(_row(preset, trigger, seed, "student", "clean_kd", started, rates))


def _fresh_student(preset: configs.Preset, teacher: Network, root: Array) -> Network:
    return models.create(
        keys.stream(root, "init"),
        preset.student.architecture,
        num_classes=teacher.module.num_classes,
        input_shape=teacher.input_shape,
        mean=teacher.mean,
        std=teacher.std,
        dtype=preset.dtype,
    )


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
    observer: Observer | None = None,
    devices: int = 0,
    screens: Screens | None = None,
) -> Row:
    """Distils a student without data in its directory and returns its row; a finished one is not distilled again.

    The data set and the trigger serve evaluation alone: nothing that is learned or chosen depends on them. Without
    them, both None, the row's ACC, ASR and RA are None, and there is no `best/`. `screens` is a defense from outside.

    Raises:
        Interrupted: SIGTERM came; the state is saved.
        ValueError: a setting that does not fit the teacher, or a metric that was not finite.
    """
    if directory.result is not None:
        return directory.result
    started, settings, root = began(directory.path), preset.student, keys.root(seed, "distill")
    mesh = sharding.data_mesh(devices) if devices else None
    classes = dataset.classes if dataset is not None else ()
    run = Distillation.make(preset, defense, teacher, sharding.batch_sharding(mesh) if mesh else None, classes, screens)
    test = None
    if dataset is not None and trigger is not None:
        test = TestSet.make(dataset, trigger, preset.teacher.target)
    teacher = run.rival.harden(teacher)
    state = run.init(root, teacher)
    best = (jnp.full((), -1.0), jax.tree.map(jnp.copy, state.student.variables))
    alone, tree = teacher, (state, best)
    if mesh is not None:
        teacher, tree = sharding.replicate((teacher, tree), mesh)

    def prepare(tree: Any) -> Any:
        """What the defense learns of the teacher before the first round."""
        vaccine, backdoor = state.vaccine, state.backdoor
        if vaccine is None and backdoor is None:
            return tree
        generic = _generic_images(run, root, state.synthesizer)
        if vaccine is not None:
            empty = hasattr(state.synthesizer, "bank")
            own = functools.partial(run.synthesizer.sample, state=state.synthesizer)
            vaccine = _select_vaccine(directory, run, root, generic if empty else own, alone)
        if backdoor is not None:
            inversion = _invert_triggers(directory, run, root, generic, alone)
            backdoor = trigger_inversion.suspected(preset.inversion, inversion, backdoor)
        if mesh is not None:
            vaccine, backdoor = sharding.replicate((vaccine, backdoor), mesh)
        started, best = tree
        return dataclasses.replace(started, vaccine=vaccine, backdoor=backdoor), best

    def steps(first: int, tree: Any) -> Iterator[tuple[int, Any, Mapping[str, Array]]]:
        state, best = tree
        rounds = dispatch.compile_rounds(run, root, state, teacher)
        if test is not None:
            evaluation.rates(state.student, test)  # compiles before the first round
        for step in range(first, settings.cycles):
            state, metrics = rounds[run.phase(step)](root, state, teacher)
            due = (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.cycles
            if test is not None and due:
                rates = _named_rates(state.student, test)
                best = _keep_better(best, rates["acc"], state.student.variables)
                metrics = metrics | rates
            _spill(directory, preset, step + 1, state.synthesizer)
            yield step + 1, (state, best), metrics

    title = f"student · {defense} · {trigger or 'unknown trigger'} · seed {seed}"
    observer, every = observer or Silent(), settings.checkpoint_every
    state, best = _loop(directory, started, observer, title, tree, steps, settings.cycles, every, prepare)
    state = _repair(directory, run, root, state, teacher)
    notes = _notes(preset, trigger, seed, "student", defense)
    checkpoint.save_network(directory.path / "network", state.student, settings.architecture, notes)
    if test is not None:
        best_student = dataclasses.replace(state.student, variables=best[1])
        chosen = notes | {"chosen_by": "accuracy on the test set"}
        checkpoint.save_network(directory.path / "best", best_student, settings.architecture, chosen)
    _write_pictures(directory, run, root, state, teacher, test)
    rates = evaluation.evaluate(state.student, test) if test is not None else None
    return directory.finish(_row(preset, trigger, seed, "student", defense, started, rates))


def make_student(
    directory: RunDirectory,
    preset: configs.Preset,
    dataset: Dataset | None,
    teacher: Network,
    trigger: str | None,
    defense: str,
    seed: int,
    observer: Observer | None = None,
    devices: int = 0,
) -> Row:
    """`train_clean_student` or `distill_student`, as the defense says.

    Raises:
        ValueError: the baseline that has data is asked for without data; else as theirs.
    """
    if defense == "clean_kd":
        if dataset is None or trigger is None:
            raise ValueError(_NO_DATA)
        return train_clean_student(directory, preset, dataset, teacher, trigger, seed, observer)
    return distill_student(directory, preset, dataset, teacher, trigger, defense, seed, observer, devices)


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
    there, here = (
        f"{height}×{width}×{channels} images of {count} classes"
        for (height, width, channels), count in (
            (known.image_shape, len(known.classes)),
            (teacher.input_shape, classes),
        )
    )
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
            raise ValueError(_NO_DATA)
        return
    rival = Distillation.make(preset, defense, teacher, classes=classes).rival
    teacher = rival.harden(teacher)
    jax.eval_shape(lambda key: rival.init(key, teacher.input_shape), jax.random.key(0))
    if configs.uses_vaccine(defense):
        shuffling_vaccine.draw(jax.random.key(0), teacher, preset.vaccine)


def _generic_images(run: Distillation, root: Array, synthesizer: Any) -> Images:
    """Images of an untrained generator, which is the fresh synthesizer's own if it is ZSKT.

    What a defense looks at before the first round. Other methods' first images serve it less or not at all: an image
    bank is empty, and on patches of a photograph the classes' triggers differ so much in size that none stands out.
    """
    if isinstance(run.synthesizer, ZSKT):
        return functools.partial(run.synthesizer.sample, state=synthesizer)
    height, width, channels = run.synthesizer.task.image_shape
    shape = (-(-height // 4) * 4, -(-width // 4) * 4, channels)
    generator = ZSKT(ZSKTConfig(features=64), dataclasses.replace(run.synthesizer.task, image_shape=shape))
    state = generator.init(keys.stream(root, "init", 2))
    return lambda key, count: generator.sample(key, state, count)[:, :height, :width]


def _select_vaccine(
    directory: RunDirectory, run: Distillation, root: Array, images: Images, teacher: Network
) -> shuffling_vaccine.Vaccine:
    """Chooses T~ on first images, and keeps the evidence for the report."""
    config = run.preset.vaccine
    vaccine, histories = shuffling_vaccine.select(
        keys.stream(root, "vaccine"),
        teacher,
        config,
        lambda index: images(keys.stream(root, "vaccine", index + 1), count=run.preset.student.batch),
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


def _invert_triggers(
    directory: RunDirectory, run: Distillation, root: Array, images: Images, teacher: Network
) -> trigger_inversion.Inversion:
    """Inverts a trigger for each class on first images, and keeps them for the report."""
    config = run.preset.inversion
    first = images(keys.stream(root, "inversion"), count=config.images)
    inversion = dispatch.invert_triggers(config, keys.stream(root, "inversion", 1), teacher, first)
    write_arrays(
        directory.path / "inversion.npz",
        masks=np.asarray(inversion.triggers.mask),
        patterns=np.asarray(inversion.triggers.pattern),
        sizes=np.asarray(inversion.sizes),
        flips=np.asarray(inversion.flips),
        suspect=np.asarray(trigger_inversion.suspect(inversion)),
        anomaly=np.asarray(trigger_inversion.anomaly(inversion)),
    )
    return inversion


def _repair(directory: RunDirectory, run: Distillation, root: Array, state: Any, teacher: Network) -> Any:
    """What a rival defense does after distillation, on images of the final synthesizer; notes go to `rival.json`."""

    draw = jax.jit(lambda key, synthesizer: run.synthesizer.sample(key, synthesizer, run.preset.student.batch))

    def sample(index: int) -> Array:
        return draw(keys.stream(root, "samples", 1 + index), state.synthesizer)

    student, notes = run.rival.repair(keys.stream(root, "rival"), state.student, teacher, sample)
    if notes:
        write_json(directory.path / "rival.json", notes)
    return dataclasses.replace(state, student=student)


def _spill(directory: RunDirectory, preset: configs.Preset, step: int, synthesizer: Any) -> None:
    """Keeps a round's new images in `bank/`, one file a round, if the bank's settings say so; waits for the device."""
    settings: Any = preset.synthesis
    if not hasattr(settings, "bank") or not settings.bank.spill:
        return
    (directory.path / "bank").mkdir(exist_ok=True)
    images = banks.newest(synthesizer.bank, settings.batch)[::-1]
    write_arrays(directory.path / "bank" / f"{step:06d}.npz", images=images)


def _write_pictures(
    directory: RunDirectory, run: Distillation, root: Array, state: Any, teacher: Network, test: TestSet | None
) -> None:
    """A sheet of final images, the image bank, and what the vaccine says of images, clean and triggered ones too."""
    if hasattr(state.synthesizer, "bank"):
        banks.write_grid(state.synthesizer.bank, directory.path / "bank.png")
    images = run.synthesizer.sample(keys.stream(root, "samples"), state.synthesizer, SAMPLES)
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


def evaluate_directory(path: Path, load: Callable[[str], Dataset]) -> tuple[evaluation.Rates, dict[str, Any]]:
    """ACC, ASR and RA of the network saved in a run's directory (or in a network's own), with its notes.

    Raises:
        CheckpointError: nothing there, or damaged.
        ValueError: its notes name an unknown data set or trigger.
    """
    inner = path / "network"
    network, notes = checkpoint.load_network(inner if inner.is_dir() else path)
    missing = [name for name in ("dataset", "trigger", "target") if notes.get(name) is None]
    if missing:
        raise ValueError(f"{path}: its {checkpoint.NETWORK_FILE} does not tell {', '.join(missing)}")
    test = TestSet.make(load(notes["dataset"]), notes["trigger"], notes["target"])
    return evaluation.evaluate(network, test), notes
