"""`digits` with NAYER.

    python -m experiments reproduce digits-nayer --out runs/digits-nayer

The method's published settings, cut down to what two CPU cores do in minutes; teacher, student and defense
are those of `digits-zskt`; the hunt takes as many steps per student update as there.

From a clean teacher, seed 10: ACC 0.869, in 73 s of one core.
"""

import dataclasses

from abd_jax.synthesis.bank import BankConfig
from abd_jax.synthesis.nayer import NAYERConfig
from experiments.presets import digits_zskt

PRESET = dataclasses.replace(
    digits_zskt.PRESET,
    name="digits-nayer",
    method="nayer",
    student=dataclasses.replace(
        digits_zskt.PRESET.student, batch=64, cycles=12, updates=50, evaluate_every=4, checkpoint_every=4
    ),
    synthesis=NAYERConfig(
        noise=256, features=64, batch=64, warm_up=2, rebuild=5, bank=BankConfig(capacity=4096, crop=1, flip=False)
    ),
    retrospection=dataclasses.replace(digits_zskt.PRESET.retrospection, hunt=40, restart=2),
)
