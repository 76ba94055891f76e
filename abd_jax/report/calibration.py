"""How good each sign of an audit is on a zoo: the page of a calibration, and that part of an audit's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from abd_jax.report import plots
from abd_jax.report.page import PAGE_FILE, fill
from abd_jax.training import calibration
from abd_jax.training.audit import SIGNS
from abd_jax.training.calibration import Calibrated, Row
from abd_jax.writing import write_whole


def write_calibration(directory: Path, rows: Sequence[Row], origin: Mapping[str, Any]) -> dict[str, Calibrated]:
    """Writes `calibration.json` and `report.html` of a zoo, and returns what is known of each sign."""
    known = calibration.calibrate(rows)
    text = fill("calibration.html.j2", origin=origin, **zoo_view(rows, known))
    directory.mkdir(parents=True, exist_ok=True)
    calibration.write_rows(directory / calibration.ROWS_FILE, rows)
    write_whole(directory / PAGE_FILE, text)
    return known


def zoo_view(rows: Sequence[Row], known: Mapping[str, Calibrated]) -> dict[str, Any]:
    """What both pages show of a calibration."""
    clean, poisoned = calibration.split(rows)

    def values(name: str, group: Sequence[Row]) -> list[float]:
        return [value for row in group if (value := row.signs[name]) is not None]

    curves = {name: calibration.roc(values(name, clean), values(name, poisoned)) for name in known}
    return {
        "zoo": rows,
        "clean": len(clean),
        "poisoned": len(poisoned),
        "triggers": sorted({row.trigger for row in poisoned}),
        "kinds": sorted({f"{row.architecture} on {row.dataset}" for row in rows}),
        "known": known,
        "meanings": SIGNS,
        "told": {name: errors(sign) for name, sign in known.items()},
        "roc": plots.roc(curves, {name: sign.auc for name, sign in known.items()}, "zoo") if known else None,
    }


def errors(sign: Calibrated | None) -> str:
    """E.g. `missed 1 of 6 (3–56 %), false alarms 0 of 6 (0–39 %)`."""
    if sign is None:
        return "not known"
    parts = []
    for name, (wrong, cases) in (("missed", sign.missed), ("false alarms", sign.false_alarms)):
        low, high = interval(wrong, cases)
        parts.append(f"{name} {wrong} of {cases} ({100 * low:.0f}–{100 * high:.0f} %)")
    return ", ".join(parts)


def interval(wrong: int, cases: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if cases == 0:
        return 0.0, 1.0
    z, share = 1.96, wrong / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases)) / (1 + z * z / cases)
    return max(0.0, middle - half), min(1.0, middle + half)
