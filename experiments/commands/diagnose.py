"""`diagnose`: robust training loss against the poison's share, and the memorization capacity of data and network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.table import Table

from abd_jax import data
from abd_jax.attacks.objectives import Adversarial
from abd_jax.settings import check_seeds
from abd_jax.training import config, diagnosis
from abd_jax.training.run_directory import RunDirectory, describe, write_json
from experiments.commands._common import PresetFields, existing, with_preset
from experiments.console import ProgressBar, stdout

ROBUST = (
    "Loss in nats on training images moved by up to ε. Where it rises with the poison's share, poison and clean images"
    " cannot both be fitted, and robust training tells of the backdoor; where it does not, it gives no warning."
)
CAPACITY = (
    f"The most noise images of random labels that are learned beside the data: {diagnosis.MEMORIZED:.0%} of them, at a"
    f" cost of at most {100 * diagnosis.TOLERANCE:g} points of accuracy. A backdoor needs such room."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Options of `diagnose`; the rest are the preset's fields: --trigger is the attack, --teacher the training."""

    preset: PresetFields
    out: Path
    """Directory of all runs and of diagnosis.json."""
    shares: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    """Poison shares for robust training."""
    epsilon: float = 0.3
    """Largest change of a pixel value in [0, 1] that robust training guards against."""
    ascent_steps: int = 3
    """Of the adversary in robust training."""
    counts: tuple[int, ...] = (0, 64, 256, 1024)
    """Numbers of noise images to memorize; 0 must be among them."""
    seed: int = 0
    """Of initialization, poisoning and noise."""
    resume: bool = False
    """Go on with what is in --out; finished measurements are kept."""
    overwrite: bool = False
    """Delete what is in --out and start again."""

    def __post_init__(self) -> None:
        check_seeds("--seed", self.seed)
        diagnosis.check_trigger(self.preset.trigger)
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"--epsilon {self.epsilon}: allowed is (0, 1]")
        if self.ascent_steps < 1:
            raise ValueError(f"--ascent-steps {self.ascent_steps}: allowed are whole numbers from 1")
        for share in self.shares:
            if not 0 <= share < 1:
                raise ValueError(f"--shares {share}: allowed is [0, 1)")
        if self.counts and (min(self.counts) != 0 or len(set(self.counts)) < len(self.counts)):
            raise ValueError("--counts: allowed are whole numbers from 0, each once, 0 among them")


def main(argv: list[str]) -> None:
    """Parses, measures and prints."""
    options = with_preset(Diagnose, argv, prog="diagnose", description="Could poison hide in this data and network?")
    preset, bar = options.preset, ProgressBar()
    dataset = data.load(preset.dataset)
    config.check_teacher(preset, dataset)
    robust = Adversarial(options.epsilon, options.ascent_steps)
    facts = {"role": "diagnosis", "trigger": preset.trigger, "seed": options.seed, "robust": dataclasses.asdict(robust)}
    top = RunDirectory.open(options.out, describe(preset, **facts), existing(options.resume, options.overwrite))

    def place(name: str, **more) -> RunDirectory:
        return RunDirectory.open(top.path / name, describe(preset, **facts, **more), "resume")

    shares = [
        diagnosis.measure_robust_loss(
            place(f"share-{share:g}", share=share), preset, dataset, share, robust, options.seed, bar
        )
        for share in options.shares
    ]
    noise = [
        diagnosis.measure_memorization(place(f"noise-{count}", count=count), preset, dataset, count, options.seed, bar)
        for count in options.counts
    ]
    capacity = diagnosis.capacity(noise) if noise else None
    write_json(top.path / "diagnosis.json", {"robust_loss": shares, "memorization": noise, "capacity": capacity})
    if shares:
        title = f"robust training against {preset.trigger}, ε = {options.epsilon:g}"
        table = Table(
            "poisoned", "robust loss", "of the clean", "of the poisoned", "ACC", "ASR", title=title, caption=ROBUST
        )
        for row in shares:
            nats = (
                "–" if row[name] is None else f"{row[name]:.3f}"
                for name in ("robust_loss", "clean_loss", "poison_loss")
            )
            table.add_row(f"{row['share']:.1%}", *nats, f"{100 * row['acc']:.2f} %", f"{100 * row['asr']:.2f} %")
        stdout.print(table)
    if noise:
        title = f"memorization capacity: {capacity} images or more"
        table = Table("noise images", "memorized", "ACC", title=title, caption=CAPACITY)
        for row in noise:
            table.add_row(str(row["count"]), f"{row['memorized']:.1%}", f"{100 * row['acc']:.2f} %")
        stdout.print(table)
