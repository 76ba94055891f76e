"""`compile`: what an accelerator's compiler says of a preset's rounds, without the accelerator."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.table import Table

from abd_jax.settings import one_of
from abd_jax.training import ahead, config
from abd_jax.training.run_directory import versions, write_json
from experiments.bench import plain_flax
from experiments.commands._common import PresetFields, with_preset
from experiments.console import stderr, stdout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compile:
    """Options of `compile`; the rest are the preset's fields."""

    preset: PresetFields
    topology: str = "v5e:2x2"
    """Chip and shape of the machine: a TPU v4, v5e, v5p or v6e; or h100:SLICESxHOSTSxDEVICES."""
    devices: int | None = None
    """Use only so many of its devices."""
    batch: int | None = None
    """Images per device and step; the preset's batch is over all devices."""
    defense: config.Defense = "abd"
    """Of its rounds the last kind is compiled."""
    together: int = 1
    """So many runs in the round's one program, as of `matrix`; the other functions are of one run."""
    functions: tuple[str, ...] = ()
    """Only these: synthesis_update, lesson, ascent_begun, ascent_step, hunt, student_update, round. And, if named, the
    same in plain Flax, plain_student_update and plain_training_step, and our training_step beside the latter."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write everything there."""

    def __post_init__(self) -> None:
        for name in self.functions:
            one_of("--functions", name, FUNCTIONS)
        if self.defense == "clean_kd":
            allowed = [name for name in config.DEFENSES if name != "clean_kd"]
            raise ValueError(f"--defense clean_kd: has no rounds; allowed are {', '.join(allowed)}")
        if self.together < 1:
            raise ValueError(f"--together {self.together}: allowed are whole numbers from 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"--batch {self.batch}: allowed are whole numbers from 1")


OURS = ("synthesis_update", "lesson", "ascent_begun", "ascent_step", "hunt", "student_update", "round")
COMPARED = ("plain_student_update", "training_step", "plain_training_step")
FUNCTIONS = dict.fromkeys((*OURS, *COMPARED))


def main(argv: list[str]) -> None:
    """Parses, compiles, prints."""
    options = with_preset(
        Compile, argv, prog="compile", description="Compile a preset's rounds for an accelerator that is not here."
    )
    jax.config.update("jax_platforms", "cpu")  # the accelerator's library compiles, but finds no device
    chip, mesh = ahead.topology_mesh(options.topology, options.devices)
    preset, devices = options.preset, mesh.devices.size
    if options.batch is not None:
        preset = ahead.with_batch(preset, options.batch * devices)
    elif preset.student.batch % devices:
        raise ValueError(f"--devices {devices}: the preset's batch of {preset.student.batch} cannot be split over them")
    per_device = preset.student.batch // devices
    title = f"{preset.name}, {preset.method}, {preset.dtype}, {options.defense}: "
    title += f"{per_device} images on each of {devices} × {options.topology.partition(':')[0]}"
    title += f", {options.together} runs together" if options.together > 1 else ""
    table = Table("per device", "value", title=title)
    header: dict[str, Any] = {"preset": preset.name, "method": preset.method, "dtype": preset.dtype}
    header |= {
        "defense": options.defense,
        "topology": options.topology,
        "devices": devices,
        "together": options.together,
    }
    header |= {"chip": dataclasses.asdict(chip), "versions": versions()}
    found: list[dict[str, Any]] = []
    wanted = options.functions or OURS
    parts = [ahead.functions(preset, options.defense, mesh, options.together)] if set(wanted) & set(OURS) else []
    if set(wanted) & set(COMPARED):
        parts.append(plain_flax.functions(preset, mesh))
    for part in itertools.chain(*parts):
        if part.name.replace(" ", "_") not in wanted:
            continue
        stderr.print(f"compiling: {part.name}", highlight=False)
        facts = ahead.compiled_facts(part)
        found.append(
            dataclasses.asdict(facts)
            | {"floor": facts.floor(chip), "by_cycles": facts.by_cycles(chip)}
            | {"largest_batch": facts.largest_batch(chip)}
        )
        table.add_section()
        for row in _rows(facts, chip):
            table.add_row(*row)
        if options.json:  # after each: a compiler that is stopped loses the one that it is at, not all
            write_json(options.json, header | {"functions": found})
        if len(found) == len(wanted):  # tracing the rest takes time too
            break
    stdout.print(table)
    missing = set(options.functions) - {facts["name"].replace(" ", "_") for facts in found}
    if missing:
        raise ValueError(
            f"--functions {' '.join(sorted(missing))}: this preset has none with --defense {options.defense}"
        )


def _rows(facts: ahead.Facts, chip: ahead.Chip) -> list[tuple[str, str]]:
    """One function's part of the table."""
    calls = f"{facts.name} (×{facts.calls} a round)" if facts.name != "round" else "the whole round, one program"
    memory = f"{facts.memory / 2**20:.0f} MiB of {chip.memory / 2**20:.0f}, {1 - facts.memory / chip.memory:.0%} left"
    moved = ", ".join(f"{n} {kind}, {size / 1e6:.3f} MB" for kind, (n, size) in facts.collectives.items())
    rows = [(calls, f"compiled in {facts.compile_seconds:.0f} s"), ("  memory", memory)]
    rows.append(("  largest batch", f"about {facts.largest_batch(chip)}, if memory grows with it"))
    if facts.name != "round":  # the cost analysis counts a loop's body once
        floor = facts.floor(chip)
        bound = "flops" if facts.flops / chip.flops == floor else "bytes"
        rows += [
            ("  flops", f"{facts.flops:.3g}"),
            ("  bytes", f"{facts.bytes:.3g}, {facts.bytes / facts.images / 1e6:.2f} MB an image of {facts.images}"),
            ("  floor", f"{1e3 * floor:.3f} ms, by {bound}"),
        ]
        if facts.predicted is None:
            rows.append(("  predicted", "no time by this compiler"))
        else:
            rows.append(
                ("  predicted", f"{1e3 * facts.predicted:.3f} ms, floor/predicted {floor / facts.predicted:.2f}")
            )
    by_cycles = facts.by_cycles(chip)
    if by_cycles is not None:
        rows.append(("  cycles", f"{facts.cycles:.4g}, {1e3 * by_cycles:.3f} ms one after the other"))
    if facts.library_calls:
        rows.append(("  library calls", ", ".join(f"{n} {name}" for name, n in sorted(facts.library_calls.items()))))
    rows += [("  collectives", moved or "none"), ("  host transfers", str(facts.host_transfers or "none"))]
    return rows
