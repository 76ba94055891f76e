"""CIFAR-10 with DFAD: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-dfad --out runs/cifar10-dfad

16 000 cycles of 1 generator and 5 student updates on batches of 256, as in CMI's comparison; the student's loss is
L1; all else is that of `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.dfad import DFADConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-dfad",
    method="dfad",
    student=dataclasses.replace(
        cifar10_cmi.PRESET.student,
        cycles=16_000,
        updates=5,
        batch=256,
        evaluate_every=80,
        checkpoint_every=800,
        loss="l1",
    ),
    synthesis=DFADConfig(),
)
