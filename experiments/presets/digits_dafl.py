"""`digits` with DAFL.

    python -m experiments reproduce digits-dafl --out runs/digits-dafl

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits-zskt`.

Batch normalization's distance, which DAFL does not have, is DFQ's. Half as many cycles gave, from a clean teacher, seed
10, ACC 0.822, which is under the bar of 0.85; the preset's own number is not known yet. 0.5 CPU seconds a cycle.
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
