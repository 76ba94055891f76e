"""What the commands that take a preset have in common."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Annotated, Any, TypeVar

import tyro

from abd_jax.interop.description import Description
from abd_jax.training.config import Preset
from abd_jax.training.run_directory import Existing
from experiments import presets
from experiments.console import choose, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a file of weights does not say by itself; a YAML file beside it (FILE.yaml) may say it instead."""

    arch: str | None = None
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
        method: take this one's preset, see `of_method`; default: the one that `--method` names, at its own defaults.

    Raises:
        ValueError: no or an unknown preset, or bad options.
    """
    known = presets.presets()
    asked_for_help = bool({"-h", "--help"} & set(argv))
    if argv and not argv[0].startswith("-"):
        name, rest = choose("preset", argv[0], known), argv[1:]
    elif asked_for_help:
        name, rest = next(iter(known)), argv
    else:
        raise ValueError(f"a preset must come first: {prog} PRESET --options; allowed are {', '.join(known)}")
    if method is None:
        named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        named.add_argument("--method", default=known[name].method)
        preset = known[name].with_method(named.parse_known_args(rest)[0].method)
    else:
        preset = of_method(known[name], method)
    values: dict[str, Any] = {"preset": preset} | dict.fromkeys(_required(options), tyro.MISSING)
    default = options(**values)
    parsed: Any = parse(options, rest, prog=f"{prog} {name}", description=description, default=default)
    if parsed.preset.name != preset.name:
        raise ValueError(f"--name {parsed.preset.name}: allowed is {preset.name}, which the rows name as their preset")
    return parsed  # type: ignore[no-any-return]


def of_method(preset: Preset, method: str) -> Preset:
    """The preset of that name for another method, `digits-cmi` for `digits`, or else its method's default settings.

    Raises:
        ValueError: unknown method.
    """
    if method == preset.method:
        return preset
    return presets.presets().get(f"{preset.name}-{method.replace('_', '-')}") or preset.with_method(method)


def _required(options: type) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(options)
        if field.name != "preset" and field.default is dataclasses.MISSING
    ]


def existing(resume: bool, overwrite: bool) -> Existing:
    """What to do with a directory that exists.

    Raises:
        ValueError: both were asked for.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite: only one of them is allowed")
    return "resume" if resume else "overwrite" if overwrite else "refuse"
