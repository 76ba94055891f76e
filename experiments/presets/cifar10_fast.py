"""CIFAR-10 with Fast-DFKD in 5 steps: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-fast --out runs/cifar10-fast

220 epochs of 5 synthesis and 400 student updates on batches of 256, SGD 0.2 (Fang et al., 2022); all else of student
and defense as in `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.fast import FastConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-fast",
    method="fast",
    student=dataclasses.replace(cifar10_cmi.PRESET.student, cycles=220, batch=256, learning_rate=0.2),
    synthesis=FastConfig(),
)
