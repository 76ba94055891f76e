"""CIFAR-10 with NAYER: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-nayer --out runs/cifar10-nayer

320 epochs of 400 student updates on batches of 512, SGD 0.2 (Tran et al., 2024), with 800 synthesized batches spread
evenly over them, where the published code makes a quarter of them in a warm-up of 20 epochs; all else of student and
defense as in `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.nayer import NAYERConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-nayer",
    method="nayer",
    student=dataclasses.replace(cifar10_cmi.PRESET.student, cycles=800, updates=160, batch=512, learning_rate=0.2),
    synthesis=NAYERConfig(),
)
