"""CIFAR-10 with the published settings: WRN-16-2 → WRN-16-1, 80 000 cycles of ZSKT.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10 --out runs/cifar10

The teacher's recipe, ZSKT and the baseline are as published; the vaccine and Self-Retrospection are in the paper's
form, on for the last 600 cycles as in the released code, their values as in `digits-paper` where the paper prints none.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.zskt import ZSKTConfig
from abd_jax.training.config import CleanKDConfig, Preset, StudentConfig, TeacherConfig
from experiments.presets import digits_paper

PRESET = Preset(
    name="cifar10",
    dataset="cifar10",
    teacher=TeacherConfig(
        architecture="wrn-16-2",
        epochs=200,
        batch=128,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        crop=4,
        poison_rate=0.1,
        target=0,
    ),
    student=StudentConfig(
        architecture="wrn-16-1",
        cycles=80_000,
        updates=10,
        batch=128,
        learning_rate=2e-3,
        temperature=1.0,
        attention=250.0,
        clip=5.0,
    ),
    synthesis=ZSKTConfig(latent=100, updates=1, learning_rate=1e-3, temperature=1.0, clip=5.0),
    vaccine=digits_paper.PRESET.vaccine,
    retrospection=dataclasses.replace(digits_paper.PRESET.retrospection, start_fraction=1 - 600 / 80_000),
    clean_kd=CleanKDConfig(share=0.2, epochs=170, learning_rate=0.1, temperature=6.0, soft=0.95),
)
