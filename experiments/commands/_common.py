"""What the commands that take a preset have in common."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from abd_jax.interop.description import Description
from abd_jax.training import checkpoint, config, processes, speed, stage
from abd_jax.training.config import Preset
from abd_jax.training.run_directory import Existing
from abd_jax.training.stage import Observer, Silent
from experiments import presets
from experiments.console import ProgressBar, stderr, stdout
from experiments.parser import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file of weights does not say by itself; a YAML file beside it (FILE.yaml) may say it instead."""

    arch: Annotated[str | None, tyro.conf.arg(aliases=["--architecture"])] = None
    """Architecture; none: told by the file's entries where they leave no choice."""
    num_classes: int | None = None
    """Size of the logits; none: the file's."""
    image_size: tuple[int, ...] = ()
    """Height and width of the images, or one number for both."""
    mean: tuple[float, ...] = ()
    """Normalization that the network was trained with, one number per channel of images in [0, 1]."""
    std: tuple[float, ...] = ()
    """As --mean."""

    @property
    def description(self) -> Description:
        return Description(self.arch, self.num_classes, self.image_size, self.mean, self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """Several processes that share a run, each with its own devices; all are started with the same options."""

    coordinator: str | None = None
    """HOST:PORT of process 0; or auto, on Cloud TPU and SLURM, where JAX finds the processes by itself."""
    processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which of them this is, from 0. It alone, if 0, writes --out, which all must be able to read."""

    def join(self) -> None:
        """Waits for the others, if there are any.

        Raises:
            ValueError: bad options, or the others do not come.
        """
        if self.coordinator is not None:
            processes.join(self.coordinator, self.processes, self.process_id)
        elif self.processes is not None or self.process_id is not None:
            raise ValueError("--processes and --process-id: need --coordinator")


def progress() -> Observer:
    """A bar, in the one process that speaks for all."""
    return ProgressBar() if processes.primary() else Silent()


def rates(row: stage.Row) -> str:
    """A row's ACC, ASR and RA."""
    return " · ".join(f"{name.upper()} {100 * row[name]:.2f} %" for name in ("acc", "asr", "ra"))


def print_speed(directory: Path) -> None:
    """How fast the rounds of a run were, if this process made any."""
    if (found := speed.read(directory)) is not None:
        stdout.print(str(found), highlight=False)


def warn(directory: Path) -> None:
    """Says so if the defense of the student in that run came to nothing."""
    notes = json.loads((directory / "network" / checkpoint.NETWORK_FILE).read_text())
    if said := stage.warning(notes):
        stdout.print(said, highlight=False, markup=False)


def warn_of_unread(argv: list[str], preset: Preset, defense: str) -> None:
    """Names the options that were given and that this defense, or a teacher that is trained already, does not read."""
    options = {word.partition("=")[0] for word in argv}
    readers = [(f"--defense {defense}", (group,)) for group in config.unread(preset, defense)]
    for reader, names in (*readers, ("a teacher that is trained already", config.unread_of_teacher(defense))):
        unread = tuple(f"--{name}.".replace("_", "-") for name in names)
        given = sorted(option for option in options if f"{option}.".replace("_", "-").startswith(unread))
        if given:
            stderr.print(f"note: {reader} does not read {', '.join(given)}", highlight=False)


Together = Annotated[Several, tyro.conf.arg(name="")]
"""The options of several processes as options of the command itself."""

File = Annotated[FileFacts, tyro.conf.arg(name="")]
"""The facts of a file as options of the command itself."""

Options = TypeVar("Options")
PresetFields = Annotated[Preset, tyro.conf.arg(name="")]
"""A preset whose fields are options of the command itself: `--student.cycles`, not `--preset.student.cycles`."""


def with_preset(
    options: type[Options], argv: list[str], *, prog: str, description: str, method: str | None = None
) -> Options:
    """Parses `PRESET --options`; every field of the preset is an option too, with the preset's value as default.

    Args:
        options: what the command takes; its field `preset` is what PRESET names.
        argv: the command's arguments.
        prog, description: for its help.
        method: take this one's preset, see `of_method`; default: the same of the one that `--method` names.

    Raises:
        ValueError: no or an unknown preset, or bad options, or two that say the same.
    """
    known = presets.presets()
    asked_for_help, shown = bool({"-h", "--help"} & set(argv)), "PRESET"
    if argv and not argv[0].startswith("-"):
        name, rest = presets.named(argv[0]).name, argv[1:]
        shown = name
    elif asked_for_help:
        name, rest = next(iter(known)), argv
        description += f" The defaults below are those of the preset {name}; `{prog} PRESET --help` has another's."
    else:
        raise ValueError(f"a preset must come first: {prog} PRESET --options; allowed are {', '.join(known)}")
    if method is None:
        named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        named.add_argument("--method", nargs="?")
        preset = _with_method(known[name], named.parse_known_args(rest)[0].method or None)
    else:
        preset = of_method(known[name], method)
    values: dict[str, Any] = {"preset": preset} | dict.fromkeys(_required(options), tyro.MISSING)
    default = options(**values)
    parsed: Any = parse(options, rest, prog=f"{prog} {shown}", description=description, default=default)
    given = {word.partition("=")[0] for word in rest}
    for one in ("--trigger", "--seed"):
        if {one, f"{one}s"} <= given:
            raise ValueError(f"{one} and {one}s: only one of them is allowed")
    if parsed.preset.name != preset.name:
        raise ValueError(f"--name {parsed.preset.name}: allowed is {preset.name}, which the rows name as their preset")
    return parsed  # type: ignore[no-any-return]


def _with_method(preset: Preset, method: str | None) -> Preset:
    """As `of_method`, saying which settings those are; the preset itself, if the method is its own or none is named."""
    if method is None:
        return preset
    of_its_own = of_method(preset, method)
    if method != preset.method:
        whose = f"preset {of_its_own.name}" if of_its_own.name != preset.name else "its publication"
        stdout.print(f"note: --method {method}: with the settings of {whose}", highlight=False)
        return of_its_own
    if of_its_own.name != preset.name:
        stdout.print(
            f"note: --method {method}: as preset {preset.name} has it; {of_its_own.name} has other settings, "
            "which `matrix` takes",
            highlight=False,
            soft_wrap=True,
        )
    return preset


def of_method(preset: Preset, method: str) -> Preset:
    """The preset of that name for a method, `digits-cmi` for `digits`, or else the method's default settings in it.

    Raises:
        ValueError: unknown method.
    """
    return presets.presets().get(f"{preset.name}-{method.replace('_', '-')}") or preset.with_method(method)


def _required(options: type) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(options)
        if field.name != "preset" and field.default is dataclasses.MISSING
    ]


def check_once(options: Any, *names: str) -> None:
    """Raises ValueError if an option of several values has one of them twice."""
    for name in names:
        values = getattr(options, name)
        if len(set(values)) < len(values):
            raise ValueError(f"--{name}: each value may stand there once only, got {' '.join(map(str, values))}")


def existing(resume: bool, overwrite: bool) -> Existing:
    """What to do with a directory that exists.

    Raises:
        ValueError: both were asked for.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite: only one of them is allowed")
    return "resume" if resume else "overwrite" if overwrite else "refuse"
