"""CIFAR-10 with contrastive model inversion: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-cmi --out runs/cifar10-cmi

200 epochs of 200 synthesis and 400 student updates; SGD 0.1 with a cosine, T = 20 with T² (Fang et al., 2021). The
defense is that of `cifar10`; Self-Retrospection is on in the last two epochs, as in the released code.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.cmi import CMIConfig
from abd_jax.training.config import StudentConfig
from experiments.presets import cifar10

PRESET = dataclasses.replace(
    cifar10.PRESET,
    name="cifar10-cmi",
    method="cmi",
    student=StudentConfig(
        architecture="wrn-16-1",
        cycles=200,
        updates=400,
        batch=128,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=1e-4,
        temperature=20.0,
        temperature_squared=True,
        reduction="sum",
        attention=0.0,
        clip=1e9,
        evaluate_every=1,
        checkpoint_every=10,
    ),
    synthesis=CMIConfig(),
    retrospection=dataclasses.replace(cifar10.PRESET.retrospection, start_fraction=0.99),
)
