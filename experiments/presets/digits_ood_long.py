"""`digits-ood` with three times as many cycles.

    python -m experiments reproduce digits-ood-long --out runs/digits-ood-long

From a clean teacher, seeds 10 and 11: ACC 0.953 and 0.886.
"""

import dataclasses

from experiments.presets import digits_ood

PRESET = dataclasses.replace(
    digits_ood.PRESET,
    name="digits-ood-long",
    student=dataclasses.replace(digits_ood.PRESET.student, cycles=1800),
)
