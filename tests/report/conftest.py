"""A directory as `reproduce` leaves it, made up but believable: digits, badnet_sq, curves that rise and level off."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abd_jax.defenses.trigger_inversion import anomalies

ENDS = {  # defense → ACC, ASR, RA at the end
    "teacher": (0.992, 0.997, 0.003),
    "none": (0.920, 0.970, 0.028),
    "sv": (0.905, 0.340, 0.590),
    "sr": (0.915, 0.610, 0.360),
    "abd": (0.912, 0.020, 0.890),
    "clean_kd": (0.958, 0.071, 0.880),
}
SECONDS = {"teacher": 61.0, "none": 182.0, "sv": 205.0, "sr": 240.0, "abd": 263.0, "clean_kd": 35.0}
STEPS = {"teacher": 330, "clean_kd": 900}
CYCLES = 600


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The first scanned digits of scikit-learn, twice as large: uint8 [n, 16, 16, 1] and their labels."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.kron(np.round(raw.images[:256] * (255 / 16)).astype(np.uint8), np.ones((1, 2, 2), np.uint8))
    return images[..., None], raw.target[:256]


def stamp(images: np.ndarray) -> np.ndarray:
    """A white square near the bottom right corner."""
    triggered = images.copy()
    triggered[:, -5:-1, -5:-1] = 255
    return triggered


def make_directory(
    path: Path,
    *,
    triggers: Sequence[str] = ("badnet_sq",),
    seeds: Sequence[int] = (0,),
    defenses: Sequence[str] = ("none", "abd"),
    ends: dict[str, tuple[float, float, float]] | None = None,
    enabled: bool = True,
    command: str = "python -m experiments reproduce digits --out runs/demo",
    classes: Sequence[str] = tuple("0123456789"),
    unfinished: bool = False,
) -> Path:
    """Writes the directory; `unfinished` leaves the last student of every seed in the middle of its training."""
    ends = ENDS | (ends or {})
    path.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "preset": {
            "name": "digits",
            "dataset": "digits",
            "trigger": triggers[0],
            "method": "zskt",
            "dtype": "float32",
            "teacher": {
                "architecture": "wrn-16-1",
                "epochs": 30,
                "learning_rate": 0.1,
                "poison_rate": 0.1,
                "target": 0,
            },
            "student": {
                "architecture": "wrn-10-1",
                "cycles": CYCLES,
                "attention": 250.0,
                "nested": {"a": None, "b": True},
            },
            "vaccine": {"copies": 3, "kernels": 2, "alpha": 0.1, "suspicion": "both", "tail": 0.02, "trials": 8},
            "retrospection": {"portion": 1.0, "sigma": 1e-3, "on": ["student", "teacher"]},
        },
        "command": command,
        "triggers": list(triggers),
        "seeds": list(seeds),
        "defenses": list(defenses),
        "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "abd_jax": "0.1.0"},
        "device": "cpu (2 cores)",
        "started": "2026-11-22T21:36:00+00:00",
    }
    (path / "config.json").write_text(json.dumps(config))
    rows = []
    for place, trigger in enumerate(triggers):
        for seed in seeds:
            for defense in ("teacher", *defenses):
                rng = np.random.default_rng([place, seed, *defense.encode()])
                done = not (unfinished and defense == defenses[-1])
                row = _row(trigger, seed, defense, ends[defense], rng)
                kind, name = ("teachers", "") if defense == "teacher" else ("students", f"-{defense}")
                run = path / kind / f"{trigger}-seed{seed}{name}"
                run.mkdir(parents=True)
                _write_run(run, config, row, classes, rng, done)
                if defense == "teacher":
                    _write_examples(run, rng)
                elif done and defense != "clean_kd":
                    _write_samples(run, defense, rng)
                    if defense in ("sv", "abd"):
                        _write_vaccine(run, rng, enabled)
                    if defense in ("sr", "abd"):
                        _write_inversion(run, rng, len(classes))
                if done:
                    rows.append(row)
    (path / "results.json").write_text(json.dumps(rows))
    return path


def _row(trigger: str, seed: int, defense: str, ends: Sequence[float], rng: np.random.Generator) -> dict[str, Any]:
    acc, asr, ra = (float(np.clip(end + 0.01 * rng.normal() * (seed > 0), 0, 1)) for end in ends)
    role = "teacher" if defense == "teacher" else "student"
    return {
        "preset": "digits",
        "dataset": "digits",
        "method": "zskt",
        "trigger": trigger,
        "seed": seed,
        "role": role,
        "defense": "none" if role == "teacher" else defense,
        "acc": acc,
        "asr": asr,
        "ra": ra,
        "seconds": SECONDS[defense] * (1 + 0.02 * float(rng.random())),
    }


def _write_run(
    run: Path, config: dict[str, Any], row: dict[str, Any], classes: Sequence[str], rng: np.random.Generator, done: bool
) -> None:
    defense = "teacher" if row["role"] == "teacher" else row["defense"]
    more = {name: row[name] for name in ("trigger", "seed", "role", "defense")}
    if row["role"] == "student":
        more["teacher"] = {"path": f"../../teachers/{row['trigger']}-seed{row['seed']}", "digest": "5f" * 32}
    (run / "config.json").write_text(json.dumps(config | more | {"classes": list(classes)}))
    steps = STEPS.get(defense, CYCLES)
    lines = []
    for step in range(steps // 30, (steps if done else steps // 2) + 1, steps // 30):
        entry: dict[str, Any] = {"step": step, "seconds": row["seconds"] * step / steps, "student/kl": 1 / (1 + step)}
        if step % (steps // 15) == 0:
            rise = 1 - np.exp(-5 * step / steps) + np.exp(-5)
            wobble = 0.06 * (1 - step / steps)
            entry["acc"] = float(np.clip(0.1 + (row["acc"] - 0.1) * rise + wobble * rng.normal(), 0, 1))
            entry["asr"] = float(np.clip(row["asr"] * rise + wobble * rng.normal(), 0, 1))
            entry["ra"] = float(np.clip(row["ra"] * rise, 0, 1))
        lines.append(json.dumps(entry))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if done:
        (run / "result.json").write_text(json.dumps(row))


def _write_examples(run: Path, rng: np.random.Generator) -> None:
    images, labels = digits()
    chosen = rng.permutation(np.flatnonzero(labels != 0))[:10]
    clean = images[chosen]
    fooled = np.zeros(10, int)
    fooled[6] = labels[chosen][6]
    np.savez(
        run / "examples.npz",
        clean=clean,
        triggered=stamp(clean),
        labels=labels[chosen],
        clean_predictions=labels[chosen],
        triggered_predictions=fooled,
    )


def _write_samples(run: Path, defense: str, rng: np.random.Generator) -> None:
    images, labels = digits()
    share = 0.35 if defense == "none" else 0.05
    chosen = rng.integers(0, len(images), 128)
    towards = rng.random(128) < share
    noisy = np.clip(images[chosen] * 0.6 + 40 * rng.normal(size=(128, 16, 16, 1)) + 60, 0, 255).astype(np.uint8)
    noisy[towards] = stamp(noisy[towards])
    np.savez(run / "samples.npz", images=noisy, predictions=np.where(towards, 0, labels[chosen]))


def _write_vaccine(run: Path, rng: np.random.Generator, enabled: bool) -> None:
    log_kl = rng.normal(0.2, 0.25, (3 if enabled else 8, 1280))
    if enabled:
        log_kl[-1, :50] = rng.normal(-1.6, 0.4, 50)
    threshold = log_kl[-1].mean() - 3 * log_kl[-1].std()
    np.savez(
        run / "vaccine.npz",
        log_kl=log_kl,
        threshold=threshold,
        tail=np.mean(log_kl[-1] < threshold),
        trials=3 if enabled else 8,
        enabled=float(enabled),
        tail_bar=0.02,
        synthetic=rng.normal(0.25, 0.2, 1280),
        clean=rng.normal(0.1, 0.3, 360),
        triggered=rng.normal(-1.4, 0.5, 324),
    )


def _write_inversion(run: Path, rng: np.random.Generator, classes: int) -> None:
    """Broad patches that flip most images, and class 0's on the pixels of the square, which flips nearly all."""
    masks = rng.uniform(0.1, 0.5, (classes, 16, 16, 1)).astype(np.float32)
    masks[0] = 0.01
    masks[0, -5:-1, -5:-1] = 0.6
    flips = rng.uniform(0.9, 0.95, classes).astype(np.float32)
    flips[0] = 0.99
    sizes = masks.sum((1, 2, 3))
    np.savez(
        run / "inversion.npz",
        masks=masks,
        patterns=np.ones((classes, 16, 16, 1), np.float32),
        sizes=sizes,
        flips=flips,
        anomalies=np.asarray(anomalies(sizes)),
        suspect=np.int32(0),
    )


@pytest.fixture
def reproduce(tmp_path: Path) -> Callable[..., Path]:
    """Makes a directory of `reproduce` in `tmp_path`."""
    return lambda **options: make_directory(tmp_path / "demo", **options)
