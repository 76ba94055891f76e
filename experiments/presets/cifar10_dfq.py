"""CIFAR-10 with DFQ: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-dfq --out runs/cifar10-dfq

16 000 cycles of 1 generator and 5 student updates on batches of 256, as in CMI's comparison; student and defense are
those of `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.dfq import DFQConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-dfq",
    method="dfq",
    student=dataclasses.replace(
        cifar10_cmi.PRESET.student, cycles=16_000, updates=5, batch=256, evaluate_every=80, checkpoint_every=800
    ),
    synthesis=DFQConfig(),
)
