"""`digits` with DAFL.

    python -m experiments reproduce digits-dafl --out runs/digits-dafl

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits`. Its settings were chosen by budget alone: no result has been measured yet.
"""

import dataclasses

from abd_jax.synthesis.dafl import DAFLConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-dafl",
    method="dafl",
    student=dataclasses.replace(digits.PRESET.student, cycles=300, updates=5),
    synthesis=DAFLConfig(features=64, batch_norm=0.1),
)
