"""`matrix`: methods × triggers × defenses × seeds, resumable, here or on a cluster, on one page."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from abd_jax import data, synthesis
from abd_jax.attacks.attack import check_name
from abd_jax.report import results_table, write_matrix_page
from abd_jax.settings import check_seeds, one_of
from abd_jax.training import checks, config, executors, matrix, stage
from abd_jax.training.cells import Cell, Outcome
from abd_jax.training.run_directory import CONFIG_FILE, RunDirectory, describe, write_json
from experiments import process
from experiments.commands._common import PresetFields, check_once, existing, with_preset
from experiments.console import PROGRAM, stderr, stdout


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """Where Ray runs, and what each worker asks for."""

    address: str = ""
    """Of the cluster, e.g. auto; empty: one of this machine, for this call."""
    cpus: float = 1
    gpus: float = 0


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What each Slurm job asks for."""

    partition: str = ""
    minutes: int = 60
    cpus: int = 2
    gpus: int = 0
    memory_gb: int = 0
    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes of this machine, to try the set-up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixOptions:
    """Options of `matrix`; the rest are the preset's fields, for every method's preset."""

    preset: PresetFields
    out: Path
    """Directory of all cells, of results.json and of report.html."""
    methods: tuple[str, ...] = ()
    """Each by its own preset, PRESET-METHOD, if there is one, else at its default settings. Default: the preset's."""
    triggers: tuple[str, ...] = ()
    """Default: the preset's."""
    defenses: tuple[config.Defense, ...] = ("none", "sv", "sr", "abd")
    """As of `reproduce`."""
    seeds: tuple[int, ...] = (0,)
    """One teacher for each trigger and seed; one student for each cell."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """local: processes of this machine; ray, slurm: see docs/matrix.md."""
    workers: int = 1
    """Cells, or lots of them, at a time."""
    together: int = 1
    """Students of one method and defense that a worker computes in one program, on TPU or GPU, to fill it; on CPU,
    where that takes longer, one after the other. A lot keeps one worker busy: with few cells, more workers do more."""
    retries: int = 1
    """How often a cell, or a lot, is tried again whose worker died (it goes on from its checkpoint)."""
    ray: RayOptions = RayOptions()
    slurm: SlurmOptions = SlurmOptions()
    resume: bool = False
    """Go on with what is in --out, or start; cells that are done are kept, and failed ones are tried again."""
    overwrite: bool = False
    """Delete what is in --out and start again."""

    def __post_init__(self) -> None:
        check_seeds("--seeds", *self.seeds)
        for name in self.triggers:
            check_name("--triggers", name)
        for name in self.methods:
            one_of("--methods", name, synthesis.names())
        check_once(self, "methods", "triggers", "defenses", "seeds")
        if not self.seeds or not self.defenses:
            raise ValueError("--seeds and --defenses need at least one value each")
        if self.workers < 1 or self.together < 1 or self.retries < 0:
            raise ValueError(
                f"--workers {self.workers}, --together {self.together}, --retries {self.retries}: "
                "allowed are numbers from 1, from 1 and from 0"
            )


def main(argv: list[str]) -> None:
    """Parses once per method, trains every cell that is not done, and prints the table."""
    found = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    found.add_argument("--methods", nargs="*", default=[])
    found.add_argument("--method", nargs="?")
    asked = found.parse_known_args(argv)[0]
    if asked.method is not None:
        raise ValueError(f"--method {asked.method}: a matrix has --methods {asked.method}")
    for name in asked.methods:
        one_of("--methods", name, synthesis.names())
    description = "Every method × trigger × defense × seed: teachers, students, one page."
    parsed = [
        with_preset(MatrixOptions, argv, prog="matrix", description=description, method=method)
        for method in asked.methods or [None]
    ]
    options, presets = parsed[0], [options.preset for options in parsed]
    triggers = options.triggers or (options.preset.trigger,)
    dataset = data.load(options.preset.dataset)
    for preset in presets:
        config.check_teacher(preset, dataset)
        checks.check_students(preset, dataset, options.defenses)
    top = options.out.absolute()
    teachers, students = matrix.cells(top, presets, triggers, options.defenses, options.seeds)
    execute = _executor(options, top)
    facts = {
        "role": "matrix",
        "command": f"{PROGRAM} matrix {shlex.join(argv)}",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    shared = {name: value for name, value in describe(options.preset)["preset"].items() if name in ("dataset", "dtype")}
    RunDirectory.open(options.out, {"preset": shared, **facts}, existing(options.resume, options.overwrite))
    matrix.check([*teachers, *students])
    stored = json.loads((top / CONFIG_FILE).read_text())
    write_json(top / CONFIG_FILE, stored | {"command": facts["command"]})  # the grid may have grown

    def tell(cell: Cell, outcome: Outcome, finished: int, total: int) -> None:
        rates = "told to stop"
        if outcome.row:
            rates = " ".join(f"{name.upper()} {100 * outcome.row[name]:.1f} %" for name in ("acc", "asr"))
            rates += f" ({outcome.row['seconds']:.0f} s)"
            if said := stage.warning(cell.notes):
                rates += f"; {said}"
        elif outcome.error:
            rates = f"FAILED: {outcome.error} (log: {cell.log})"
        stderr.print(f"{finished}/{total} {cell.title}: {rates}", highlight=False, markup=False, soft_wrap=True)
        write_matrix_page(top)

    try:
        grid = matrix.run(top, teachers, students, functools.partial(_tuned, execute), tell, options.together)
    except executors.Terminated as error:
        matrix.Matrix(top, [*teachers, *students])  # with those that were done in lots that were not
        write_matrix_page(top)
        raise stage.Interrupted(f"{options.out}: {error}") from error
    page = write_matrix_page(top)
    stdout.print(results_table(grid.rows()))
    stdout.print(f"results: {options.out / matrix.RESULTS_FILE}\nreport:  {options.out / page.name}", highlight=False)
    names = {cell.name for cell in (*teachers, *students)}  # the page may have more cells, of other calls
    entries = [entry for entry in grid.entries if entry["name"] in names]
    failed = [entry for entry in entries if entry["state"] == "failed"]
    if failed:
        first = failed[0]
        raise ValueError(
            f"{len(failed)} of {len(entries)} cells failed, first {first['name']} ({first['error']}; log: "
            f"{options.out / first['log']}); the others are done; --resume tries the failed ones again"
        )
    if stopped := sum(entry["state"] == "waiting" for entry in entries):
        raise stage.Interrupted(f"{options.out}: {stopped} of {len(entries)} cells were told to stop")


def _tuned(execute: executors.Execute, work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """The executor, whose workers take this process's settings before they work."""
    return execute(functools.partial(_tune_and, work), items)


def _tune_and(work: Callable[[Any], Any], item: Any) -> Any:
    process.tune()
    return work(item)


def _executor(options: MatrixOptions, top: Path) -> executors.Execute:
    if options.executor == "ray":
        executors.require("ray", "ray")
        return executors.Ray(options.workers, options.retries, **dataclasses.asdict(options.ray))
    if options.executor == "slurm":
        executors.require("submitit", "slurm")
        return executors.Slurm(top / "slurm", options.workers, options.retries, **dataclasses.asdict(options.slurm))
    return executors.Local(options.workers, options.retries)
