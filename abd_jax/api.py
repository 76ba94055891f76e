"""The library in a few calls: load, audit, distil, export. `import abd_jax as abd` offers these names."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from abd_jax.interop import description
from abd_jax.interop import export as exporting
from abd_jax.interop.teacher import read_described
from abd_jax.models import Network
from abd_jax.report import audit as pages
from abd_jax.settings import check_seeds
from abd_jax.synthesis import Method, register
from abd_jax.training import audit as auditing
from abd_jax.training import checkpoint, checks, runs, stage
from abd_jax.training.audit import AuditConfig
from abd_jax.training.calibration import read_rows
from abd_jax.training.config import Preset
from abd_jax.training.distill import Screens
from abd_jax.training.run_directory import RunDirectory, describe
from abd_jax.writing import write_whole

__all__ = [
    "AuditConfig",
    "Method",
    "Model",
    "Preset",
    "Progress",
    "Screens",
    "audit",
    "distill",
    "export",
    "load",
    "register",
]

logger = logging.getLogger(__name__)
Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called once for each round, when the next is under way: its number from 1, all rounds, its metrics."""
_SUFFIXES = {".safetensors": "safetensors", ".stablehlo": "stablehlo", ".onnx": "onnx", ".msgpack": "flax"}


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with what is known of it.

    Attributes:
        network: images `[batch, height, width, channels]` in [0, 1] → `Forward`, normalization inside.
        architecture: its name for `models.build`.
        notes: where it comes from: `digest`, `file`, `classes`, `teacher`, …
    """

    network: Network
    architecture: str
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, images: Float[Array | np.ndarray, "batch height width channels"]) -> Float[Array, "batch c"]:
        """The logits."""
        return _logits(self.network, images)

    @property
    def facts(self) -> dict[str, Any]:
        """The notes with what the network itself tells: `architecture` and `digest` of the variables."""
        digest = checkpoint.digest(self.network.variables)
        return {**self.notes, "architecture": self.architecture, "digest": digest}


@jax.jit
def _logits(network: Network, images: Array) -> Array:
    return network(images).logits


class _Telling:
    """An observer that tells a function of each round once its metrics are there.

    They come with the next round's call, or with a second call of the same round.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._total, self._last = progress, 0, 0

    def begin(self, title: str, total: int, done: int) -> None:
        self._total = total

    def advance(self, done: int, metrics: Mapping[str, float]) -> None:
        before, self._last = self._last, done
        if metrics:
            self._progress(before, self._total, metrics)

    def end(self) -> None: ...


def load(
    path: Path | str,
    *,
    architecture: str | None = None,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | np.ndarray = (),
    mean: float | Sequence[float] | np.ndarray = (),
    std: float | Sequence[float] | np.ndarray = (),
    dtype: str | None = None,
) -> Model:
    """A network from a directory of ours or a stranger's file; nothing in a file is run.

    Args:
        path: safetensors, PyTorch, Flax msgpack, or a directory of a run.
        architecture: see `models.build`; None: told by the file's entries, where they leave no choice.
        num_classes: size of the logits; None: the file's.
        image_size: height and width, or one number for both.
        mean, std: normalization that it was trained with, one number per channel of images in [0, 1]; a number alone is
            of one channel.
        dtype: compute dtype; None: the directory's own, float32 for a file.

    Raises:
        TypeError: the path is none.
        ValueError: one line that says what is wrong and what is allowed.
    """
    _require("path", path, Path | str, "a path")
    facts = {
        "architecture": architecture,
        "num_classes": num_classes,
        "image_size": image_size,
        "mean": mean,
        "std": std,
    }
    plain = {name: np.asarray(fact).tolist() for name, fact in facts.items() if fact is not None}
    given = description.parse({name: fact for name, fact in plain.items() if fact != []})
    network, notes = read_described(Path(path), given, dtype)
    return Model(network, str(notes["architecture"]), notes)


def distill(
    teacher: Model,
    student: str,
    *,
    method: str | None = None,
    defense: str | Screens = "abd",
    cycles: int | None = None,
    preset: Preset | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    out: Path | str | None = None,
) -> Model:
    """A student of a teacher, without data.

    `sv`, `sr` and `abd` are not the paper's unless a preset says so: without one they have the form that our own
    measurements favor, that of the preset `digits` (`config.MEASURED_VACCINE`, `MEASURED_RETROSPECTION`), which inverts
    triggers from the teacher. If it suspects no class, a warning says that nothing was defended against.

    Args:
        teacher: what `load` returns.
        student: architecture of the student.
        method: data-free method: ours, one that an installed package offers, or one given to `register`; None: the
            preset's, ZSKT without one.
        defense: `none`, `sv`, `sr`, `abd`; or a function of your own, teacher → (screen of the synthesizer, screen of
            the student), see `screening.Screen`.
        cycles: rounds; None: the preset's.
        preset: all other settings, the form of the defense too; its data set is not looked at.
        seed: of initialization and synthesis.
        progress: told once a round.
        out: keeps metrics, checkpoints and pictures in a new directory; None: nothing is kept.

    Raises:
        TypeError: an argument of another kind, e.g. a path in place of a teacher.
        ValueError: settings that do not fit each other or the teacher, or `out` holds something already.
    """
    _require_model("teacher", teacher)
    _require("student", student, str, "the name of an architecture")
    _require("preset", preset, Preset | None, "a Preset")
    _require("cycles", cycles, int | np.integer | None, "a whole number")
    _require("seed", seed, int | np.integer, "a whole number")
    if not callable(defense):
        _require("defense", defense, str, "a name or a function")
    settings = preset or Preset(name="library", dataset="digits")
    settings = settings if method is None else settings.with_method(method)
    rounds = settings.student.cycles if cycles is None else cycles
    settings = dataclasses.replace(
        settings, student=dataclasses.replace(settings.student, architecture=student, cycles=rounds)
    )
    settings, _ = checks.fit_to_file(settings, teacher.network, {"architecture": teacher.architecture})
    name, screens = (defense, None) if isinstance(defense, str) else ("none", defense)
    classes = tuple(map(str, teacher.notes.get("classes", ())))
    check_seeds("seed", seed)
    checks.check_student(settings, None, teacher.network, name, classes)
    observer = _Telling(progress) if progress else None
    with tempfile.TemporaryDirectory() as temporary:
        facts = {"role": "student", "seed": seed, "defense": name if screens is None else _name(screens)}
        place = Path(out) if out is not None else Path(temporary) / "run"
        directory = RunDirectory.open(place, describe(settings, **facts), "refuse", "out", "name a new or an empty one")
        runs.distill_student(
            directory, settings, None, teacher.network, None, name, seed, observer, screens=screens, classes=classes
        )
        network, notes = checkpoint.load_network(directory.path / "network")
    if said := stage.warning(notes):
        logger.warning(said)
    origin = {"teacher": {"digest": teacher.facts["digest"]}, "method": settings.method, "preset": asdict(settings)}
    return Model(network, student, {**notes, **facts, **origin})


def audit(
    teacher: Model,
    student: Model | None = None,
    *,
    settings: AuditConfig | None = None,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Signs of a backdoor, without data.

    Args:
        teacher: the network to look at.
        student: of this teacher; which signs are gone in it?
        settings: how thoroughly.
        out: a page and `audit.json` are written there; None: nothing is.

    Returns:
        What `audit.json` holds: `headline`, `teacher` and `student` with their `signs` and `verdicts`, `comparison`,
        `calibration`.

    Raises:
        TypeError: an argument of another kind, e.g. a path in place of a network.
    """
    _require_model("teacher", teacher)
    if student is not None:
        _require_model("student", student)
    _require("settings", settings, AuditConfig | None, "an AuditConfig")
    settings = settings or AuditConfig()
    found = auditing.examine(teacher.network, settings)
    other = None
    if student is not None:
        comparison = auditing.compare(teacher.network, found, student.network, settings)
        other = ("student", student.facts, auditing.examine(student.network, settings), comparison)
    return pages.write(
        None if out is None else Path(out),
        names=pages.class_names(teacher.notes, teacher.network.module.num_classes),
        notes=teacher.facts,
        teacher=(str(teacher.notes.get("file", "teacher")), found),
        student=other,
        rows=read_rows(),
        deviations=settings.vaccine.deviations,
        bar=settings.inversion.anomaly,
        origin=pages.origin("abd_jax.audit", asdict(settings)),
    )


def export(
    model: Model,
    path: Path | str,
    format: str | None = None,
    *,
    audit: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """One file for elsewhere, with a model card beside it.

    Args:
        model: what `load` or `distill` returns.
        path: of the file.
        format: safetensors, stablehlo, onnx or flax; None: by the path's suffix.
        audit: what `audit` returned of this network, as teacher or as student: goes into the card.
        overwrite: replace the file and its card if they exist.

    Raises:
        TypeError: the model is none.
        ValueError: no such format, one whose converter is not installed, an audit of another network, or a file that
            exists.
    """
    _require_model("model", model)
    path = Path(path)
    chosen = format or _SUFFIXES.get(path.suffix)
    if chosen not in exporting.FORMATS:
        raise ValueError(f"format {chosen or path.suffix!r}: allowed are {', '.join(exporting.FORMATS)}")
    beside = exporting.check_place(path, overwrite, "path", "overwrite=True")
    facts = model.facts
    if audit is not None:
        facts["audit"] = pages.signs_of(audit, facts["digest"])
    content = exporting.FORMATS[chosen](model.network, model.architecture)
    write_whole(path, content)
    card = exporting.card(model.network, chosen, path.name, exporting.flat(facts))
    write_whole(beside, card)
    return path


def _require(name: str, value: object, kind: Any, words: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {words}, found {type(value).__name__}")


def _require_model(name: str, value: object) -> None:
    _require(name, value, Model, "a Model, which abd_jax.load makes of a file or a directory")


def _name(screens: Screens) -> str:
    return getattr(screens, "__qualname__", type(screens).__qualname__)
