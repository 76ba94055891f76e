"""`digits-ood` with the defense in the released code's form: gradient *ascent* on suspicious patches.

    python -m experiments reproduce digits-ood-released --out runs/digits-ood-released

SPEC §3.4's second form, each group's mean, trusted minus 0.1 × suspicious; all else of the defense as in
`digits-released`. Hardware and time: as `digits-ood`.
"""

import dataclasses

from experiments.presets import digits_ood, digits_released

PRESET = dataclasses.replace(
    digits_ood.PRESET,
    name="digits-ood-released",
    vaccine=dataclasses.replace(digits_released.PRESET.vaccine, student_weights="released", suspicious_weight=0.1),
    retrospection=digits_released.PRESET.retrospection,
)
