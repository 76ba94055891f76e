"""`digits` with DAFL.

    python -m experiments reproduce digits-dafl --out runs/digits-dafl

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits-zskt`.

Batch normalization's distance, which DAFL does not have, is DFQ's. From a clean teacher, seed 10: ACC 0.906, in 75 s of
one core.
"""

import dataclasses

from abd_jax.synthesis.dafl import DAFLConfig
from experiments.presets import digits_zskt

PRESET = dataclasses.replace(
    digits_zskt.PRESET,
    name="digits-dafl",
    method="dafl",
    student=dataclasses.replace(digits_zskt.PRESET.student, batch=64, cycles=300, updates=5),
    synthesis=DAFLConfig(features=64, batch_norm=0.1),
)
