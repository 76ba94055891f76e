"""`digits-ood` with the defense in the paper's form: suspicious patches weigh 0.1 in the student's loss.

    python -m experiments reproduce digits-ood-paper --out runs/digits-ood-paper

SPEC §3.4's first form, weights 1 − φ + w·φ with w = 0.1; all else of the defense as in `digits-paper`. Hardware and
time: as `digits-ood`.
"""

import dataclasses

from experiments.presets import digits_ood, digits_paper

PRESET = dataclasses.replace(
    digits_ood.PRESET,
    name="digits-ood-paper",
    vaccine=dataclasses.replace(digits_paper.PRESET.vaccine, student_weights="paper", suspicious_weight=0.1),
    retrospection=digits_paper.PRESET.retrospection,
)
