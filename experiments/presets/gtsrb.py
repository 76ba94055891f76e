"""GTSRB's traffic signs with the published settings: as `cifar10`, but 10 000 cycles at T = 0.5 without attention.

    python -m experiments datasets prepare gtsrb
    python -m experiments reproduce gtsrb --trigger badnet_grid --out runs/gtsrb

Target 1; signs are not mirrored. For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.zskt import ZSKTConfig
from experiments.presets import cifar10

PRESET = dataclasses.replace(
    cifar10.PRESET,
    name="gtsrb",
    dataset="gtsrb",
    teacher=dataclasses.replace(cifar10.PRESET.teacher, target=1),
    student=dataclasses.replace(cifar10.PRESET.student, cycles=10_000, temperature=0.5, attention=0.0),
    synthesis=ZSKTConfig(temperature=0.5),
    retrospection=dataclasses.replace(cifar10.PRESET.retrospection, start_fraction=1 - 600 / 10_000),
)
