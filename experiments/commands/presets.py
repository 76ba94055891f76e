"""`presets`: lists the presets with the first line of their documentation, or one in full."""

from __future__ import annotations

from rich.table import Column, Table

from experiments import presets
from experiments.console import stdout


def main(argv: list[str]) -> None:
    """Prints the list, or the whole documentation of `argv[0]`."""
    modules = presets.modules()
    if argv and argv[0] not in ("-h", "--help"):
        if len(argv) > 1:
            raise ValueError(f"unrecognized option {argv[1]!r}: allowed is the name of one preset, or nothing")
        module = modules[presets.named(argv[0]).name]
        stdout.print((module.__doc__ or "").strip(), highlight=False, markup=False)
        return
    if argv:
        stdout.print("usage: python -m experiments presets [PRESET]\n", markup=False)
    table = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2))
    for name, module in modules.items():
        preset = module.PRESET
        networks = f"{preset.teacher.architecture} → {preset.student.architecture}"
        facts = f"[dim]{preset.dataset}, {networks}, {preset.method}[/dim]"
        table.add_row(name, f"{(module.__doc__ or '').strip().splitlines()[0]}\n{facts}")
    stdout.print(table)
