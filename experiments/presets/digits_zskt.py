"""`digits` with two thirds of the cycles: one cell of a study in two minutes.

    python -m experiments reproduce digits-zskt --out runs/digits-zskt

The generator is asked for the suspected class more strongly than in `digits`, and a trigger is hunted in the student on
a quarter of each batch. The presets `digits-METHOD` share teacher and defense with this one; their students learn on
batches of 64. From a clean teacher, seed 10: ACC 0.958. What they all come to: docs/methods.md.
"""

import dataclasses

from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-zskt",
    student=dataclasses.replace(digits.PRESET.student, cycles=400, evaluate_every=100, checkpoint_every=200),
    vaccine=dataclasses.replace(digits.PRESET.vaccine, class_balance=0.1),
    retrospection=dataclasses.replace(digits.PRESET.retrospection, ascent_share=0.25),
)
