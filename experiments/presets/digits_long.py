"""`digits` with students that are given time: for the full table.

python -m experiments reproduce digits-long --seeds 0 1 2 --out runs/long
"""

import dataclasses

from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-long",
    student=dataclasses.replace(digits.PRESET.student, cycles=1500, evaluate_every=100, checkpoint_every=500),
)
