"""Fashion-MNIST at 28×28, WRN-16-1 → WRN-10-1, few epochs: a study of real images on a small machine.

    python -m experiments datasets prepare fashion_mnist
    python -m experiments reproduce fashion_mnist --out runs/fashion_mnist

Poisoned as published; the student, the defense and the generator are those of `digits`, with more cycles. Not run to
the end by us yet, so no results.
"""

import dataclasses

from abd_jax.training.config import CleanKDConfig, TeacherConfig
from experiments.presets import digits

PRESET = dataclasses.replace(
    digits.PRESET,
    name="fashion_mnist",
    dataset="fashion_mnist",
    teacher=TeacherConfig(architecture="wrn-16-1", epochs=5, crop=2, poison_rate=0.1),
    student=dataclasses.replace(digits.PRESET.student, cycles=1000, evaluate_every=100),
    clean_kd=CleanKDConfig(epochs=10),
)
