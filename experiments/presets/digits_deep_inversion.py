"""`digits` with DeepInversion.

    python -m experiments reproduce digits-deep-inversion --out runs/digits-deep-inversion

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits`; the hunt takes as many steps per student update as there.

From a clean teacher, seed 10: ACC 0.911, in 349 s of a machine with 25 processes to its two cores.
"""

import dataclasses

from abd_jax.synthesis.bank import BankConfig
from abd_jax.synthesis.deep_inversion import DeepInversionConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="digits-deep-inversion",
    method="deep_inversion",
    student=dataclasses.replace(digits.PRESET.student, cycles=14, updates=50, evaluate_every=2, checkpoint_every=7),
    synthesis=DeepInversionConfig(
        updates=60,
        batch=128,
        learning_rate=0.15,
        one_hot=10.0,
        total_variation=1.5,
        jitter=0,  # at 16×16 and in so few updates it only adds noise to the gradient
        flip=False,
        bank=BankConfig(capacity=4096, crop=1, flip=False),
    ),
    retrospection=dataclasses.replace(digits.PRESET.retrospection, hunt=40, restart=2),
)
