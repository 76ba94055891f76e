"""CIFAR-10 with DeepInversion: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-deep-inversion --out runs/cifar10-deep-inversion

200 epochs of 2 000 pixel and 400 student updates; student and defense are those of `cifar10-cmi`. Adaptive
DeepInversion is `cifar10-adi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.deep_inversion import DeepInversionConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-deep-inversion",
    method="deep_inversion",
    synthesis=DeepInversionConfig(),
)
