"""CIFAR-10 with patches of one photograph: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-ood --out runs/cifar10-ood

300 epochs of 98 updates on batches of 512, Adam 1e-3, T = 8 without T² (after Asano & Saeed, 2023; theirs is halved at
150, ours has a cosine). Suspicious patches weigh 0.1, as the paper has it; the rest of the defense as in `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.ood import OODConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-ood",
    method="ood",
    student=dataclasses.replace(
        cifar10_cmi.PRESET.student,
        cycles=300,
        updates=98,
        batch=512,
        optimizer="adam",
        learning_rate=1e-3,
        temperature=8.0,
        temperature_squared=False,
    ),
    synthesis=OODConfig(),
    vaccine=dataclasses.replace(cifar10_cmi.PRESET.vaccine, student_weights="paper", suspicious_weight=0.1),
)
