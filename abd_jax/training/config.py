"""What a run is: frozen dataclasses, validated where they are made, the fields of every preset."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from abd_jax import data, models, synthesis
from abd_jax.attacks.attack import ATTACKS, check_name
from abd_jax.defenses import rivals
from abd_jax.defenses.rivals import Rivals
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from abd_jax.defenses.trigger_inversion import InversionConfig
from abd_jax.settings import check, one_of
from abd_jax.synthesis import SynthesisConfig
from abd_jax.synthesis.zskt import ZSKTConfig

Defense = Literal["none", "sv", "sr", "abd", "clean_kd", "clp", "fine_pruning", "nad", "i_bau", "dhbe", "abl"]
DEFENSES: tuple[str, ...] = get_args(Defense)
LARGEST_BATCH = 2**16

MEASURED_VACCINE = VaccineConfig(alpha=0.0, class_balance=0.01, select=False, censor=True)
MEASURED_RETROSPECTION = RetrospectionConfig(start_fraction=0.0, perturb="inverted", portion=0.25, drop=0.25, hunt=4)
MEASURED_ZSKT = ZSKTConfig(batch_norm=0.003)
"""The form of the defense that our measurements favor (docs/study.md), with the generator that it was measured with.

A preset has it unless it says otherwise; the fields' own defaults are the published forms'.
"""


def uses_vaccine(defense: str) -> bool:
    return defense in ("sv", "abd")


def uses_retrospection(defense: str) -> bool:
    return defense in ("sr", "abd")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Supervised training of the poisoned teacher.

    Attributes:
        architecture: e.g. wrn-16-2.
        epochs: passes over the training set.
        batch: images per step.
        learning_rate: SGD's, decayed by a cosine to 0.
        momentum: SGD's.
        weight_decay: SGD's.
        crop: zero padding of the random crop, in pixels.
        poison_rate: share of the training set that is poisoned.
        target: the attacker's class.
    """

    architecture: str = "wrn-16-2"
    epochs: int = 200
    batch: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: int = 4
    poison_rate: float = 0.1
    target: int = 0

    def __post_init__(self) -> None:
        models.build(self.architecture, 2)
        check(
            "teacher",
            self,
            positive=("epochs", "batch", "learning_rate"),
            nonnegative=("weight_decay", "crop", "target"),
            below_one=("momentum", "poison_rate"),
        )


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """Data-free distillation of the student.

    Attributes:
        architecture: e.g. wrn-16-1.
        cycles: rounds of synthesis and distillation.
        updates: student updates per cycle: with ZSKT all on one batch of images, else each on a batch of its own.
        batch: images per student update.
        optimizer: Adam, or SGD with momentum 0.9.
        learning_rate: the optimizer's, decayed by a cosine to 0 over the run.
        weight_decay: SGD's.
        loss: what the student minimizes: KL(T ‖ S), or the mean over classes of |T − S| (logits).
        temperature: T of both softmaxes in the student's KL.
        temperature_squared: whether that KL is multiplied by T², which keeps its gradient's size (Hinton et al., 2015).
        reduction: of the KL over classes: their mean (ZSKT), or their sum.
        attention: weight β of attention transfer.
        clip: largest global norm of a gradient.
        evaluate_every: cycles between two evaluations on the test set; they inform, and choose `best/` beside the
            run's result, which is always the last student.
        checkpoint_every: cycles between two checkpoints.
    """

    architecture: str = "wrn-16-1"
    cycles: int = 80_000
    updates: int = 10
    batch: int = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    loss: Literal["kl", "l1"] = "kl"
    temperature: float = 1.0
    temperature_squared: bool = False
    reduction: Literal["class_mean", "sum"] = "class_mean"
    attention: float = 250.0
    clip: float = 5.0
    evaluate_every: int = 1000
    checkpoint_every: int = 5000

    def __post_init__(self) -> None:
        models.build(self.architecture, 2)
        counts = ("cycles", "updates", "evaluate_every", "checkpoint_every")
        check(
            "student",
            self,
            positive=(*counts, "learning_rate", "temperature", "clip"),
            nonnegative=("attention", "weight_decay"),
        )
        if not 2 <= self.batch <= LARGEST_BATCH:
            raise ValueError(f"student.batch {self.batch}: allowed are whole numbers 2 … {LARGEST_BATCH}")


@dataclasses.dataclass(frozen=True)
class CleanKDConfig:
    """The baseline that has data: distillation on a share of the clean training set.

    Attributes:
        share: of the clean training set.
        epochs: passes over that share.
        batch: images per step.
        learning_rate: SGD's, decayed by a cosine to 0.
        momentum: SGD's.
        weight_decay: SGD's.
        temperature: T of the soft loss, which is scaled by T².
        soft: weight of the soft loss; the hard one has 1 − soft.
    """

    share: float = 0.2
    epochs: int = 170
    batch: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    temperature: float = 6.0
    soft: float = 0.95

    def __post_init__(self) -> None:
        check(
            "clean_kd",
            self,
            positive=("epochs", "batch", "learning_rate", "temperature"),
            nonnegative=("weight_decay",),
            shares=("soft",),
            up_to_one=("share",),
            below_one=("momentum",),
        )


@dataclasses.dataclass(frozen=True)
class Preset:
    """Everything that a run depends on but its trigger, its defense and its seed.

    Attributes:
        name: of the preset.
        dataset: name of the data set that the teacher is trained and everything is evaluated on.
        trigger: the attack, unless others are named.
        method: data-free synthesis method; `synthesis` has its settings.
        dtype: compute dtype of the networks; parameters, statistics and losses are float32.
    """

    name: str
    dataset: str
    trigger: str = dataclasses.field(
        default="badnet_sq", metadata={"help": f"the attack, unless others are named: {', '.join(ATTACKS)}"}
    )
    method: str = dataclasses.field(
        default="zskt",
        metadata={"help": f"what makes the images, with the settings `synthesis`: {', '.join(synthesis.names())}"},
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    synthesis: SynthesisConfig = MEASURED_ZSKT
    vaccine: VaccineConfig = MEASURED_VACCINE
    retrospection: RetrospectionConfig = MEASURED_RETROSPECTION
    inversion: InversionConfig = InversionConfig()
    clean_kd: CleanKDConfig = CleanKDConfig()
    rivals: Rivals = Rivals()

    def __post_init__(self) -> None:
        one_of("dataset", self.dataset, sorted(data.LOADERS))
        check_name("trigger", self.trigger)
        if not isinstance(self.synthesis, synthesis.lookup(self.method).config):
            given = type(self.synthesis).__name__
            raise ValueError(f"method {self.method!r}: the preset's synthesis settings are {given}, of another method")

    def with_method(self, name: str) -> Preset:
        """The same with another data-free method at its default settings.

        Raises:
            ValueError: unknown method.
        """
        if name == self.method:
            return self
        return dataclasses.replace(self, method=name, synthesis=synthesis.lookup(name).config())


def check_teacher(preset: Preset, dataset: data.Dataset) -> None:
    """Raises ValueError if the target is no class of the data set, or the crop may leave nothing of an image."""
    side = min(dataset.image_shape[:2])
    if preset.teacher.crop >= side:
        raise ValueError(f"teacher.crop {preset.teacher.crop}: allowed are 0 … {side - 1} for images of side {side}")
    if preset.teacher.target >= dataset.num_classes:
        raise ValueError(
            f"teacher.target {preset.teacher.target}: allowed are the classes of {dataset.name}, "
            f"0 … {dataset.num_classes - 1}"
        )


def unread(preset: Preset, defense: str) -> tuple[str, ...]:
    """Groups of a preset's fields that say nothing under this defense, e.g. `vaccine`, `rivals.clp`."""
    censors = uses_vaccine(defense) and preset.vaccine.censor
    pastes = uses_retrospection(defense) and preset.retrospection.perturb == "inverted"
    read = {
        "vaccine": uses_vaccine(defense),
        "retrospection": uses_retrospection(defense),
        "inversion": censors or pastes,
        "clean_kd": defense == "clean_kd",
    } | {f"rivals.{name}": defense == name for name in rivals.NAMES}
    return tuple(group for group, used in read.items() if not used)


def unread_of_teacher(defense: str) -> tuple[str, ...]:
    """Fields of `teacher` that say nothing of one that is trained already, e.g. `teacher.epochs`."""
    read = ("architecture", "target", "crop") if defense == "clean_kd" else ("architecture", "target")
    return tuple(f"teacher.{field.name}" for field in dataclasses.fields(TeacherConfig) if field.name not in read)
