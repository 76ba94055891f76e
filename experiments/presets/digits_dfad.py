"""`digits` with DFAD.

    python -m experiments reproduce digits-dfad --out runs/digits-dfad

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits`.

Batch normalization's distance, which DFAD does not have, is DFQ's. Not measured yet.
"""

import dataclasses

from abd_jax.synthesis.dfad import DFADConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-dfad",
    method="dfad",
    student=dataclasses.replace(digits.PRESET.student, cycles=300, updates=5, loss="l1"),
    synthesis=DFADConfig(features=64, batch_norm=0.03),
)
