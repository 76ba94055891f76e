"""`digits` with Adaptive DeepInversion: images on which the student still differs from the teacher.

    python -m experiments reproduce digits-adi --out runs/digits-adi

All else is as in `digits-deep-inversion`. From a clean teacher, seed 10: ACC 0.878.
"""

import dataclasses

from experiments.presets import digits_deep_inversion

PRESET = dataclasses.replace(
    digits_deep_inversion.PRESET,
    name="digits-adi",
    synthesis=dataclasses.replace(digits_deep_inversion.SYNTHESIS, adversarial=1.0),
)
