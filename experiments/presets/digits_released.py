"""`digits` with the defense in the released code's form.

    python -m experiments reproduce digits-released --out runs/digits-released

SPEC §4's column "released code": T~ is the first draw; the penalty is averaged over suspicious images, the KL over
classes; δ is found on the teacher from zeros by Adam, ⌊0.02·B⌋ images are perturbed in the outer loss, whose clean
branch is not differentiated. Hardware and time: as `digits`.
"""

import dataclasses

from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.shuffling_vaccine import VaccineConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-released",
    vaccine=VaccineConfig(alpha=0.1, reduction="class_mean", normalize="masked", select=False),
    retrospection=RetrospectionConfig(
        perturb="teacher",
        start="zeros",
        ascent="adam",
        ascent_rate=0.1,
        portion=0.02,
        round_down=True,
        clean_gradient=False,
    ),
)
