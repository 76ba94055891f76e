"""`digits` with patches of one photograph.

    python -m experiments reproduce digits-ood --out runs/digits-ood

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits`. Its settings were chosen by budget alone: no result has been measured yet.
"""

import dataclasses

from abd_jax.synthesis.ood import OODConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-ood",
    method="ood",
    student=dataclasses.replace(digits.PRESET.student, cycles=300, updates=5),
    synthesis=OODConfig(),
)
