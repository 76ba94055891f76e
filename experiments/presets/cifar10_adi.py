"""CIFAR-10 with Adaptive DeepInversion: the published student beside the published images.

    python -m experiments datasets prepare cifar10
    python -m experiments reproduce cifar10-adi --out runs/cifar10-adi

200 epochs of 1 000 pixel updates against the student and 400 of the student, as in CMI's comparison; student and
defense are those of `cifar10-cmi`.
For an accelerator; not run by us yet, so no results.
"""

import dataclasses

from abd_jax.synthesis.deep_inversion import DeepInversionConfig
from experiments.presets import cifar10_cmi

PRESET = dataclasses.replace(
    cifar10_cmi.PRESET,
    name="cifar10-adi",
    method="deep_inversion",
    synthesis=DeepInversionConfig(updates=1000, adversarial=1.0),
)
