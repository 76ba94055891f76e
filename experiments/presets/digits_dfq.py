"""`digits` with DFQ.

    python -m experiments reproduce digits-dfq --out runs/digits-dfq

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits`. Its settings were chosen by budget alone: no result has been measured yet.
"""

import dataclasses

from abd_jax.synthesis.dfq import DFQConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-dfq",
    method="dfq",
    student=dataclasses.replace(digits.PRESET.student, cycles=300, updates=5),
    synthesis=DFQConfig(features=64, learning_rate=1e-3),
)
