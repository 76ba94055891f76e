"""`digits` with half the batch and fewer cycles: one cell of a study in a minute.

    python -m experiments reproduce digits-zskt --out runs/digits-zskt

The student learns, and a trigger is hunted in it, on 64 images and 16 of them. What the presets `digits-METHOD` share.
"""

import dataclasses

from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-zskt",
    student=dataclasses.replace(digits.PRESET.student, batch=64, cycles=360, evaluate_every=60, checkpoint_every=120),
    retrospection=dataclasses.replace(digits.PRESET.retrospection, ascent_share=0.25),
)
