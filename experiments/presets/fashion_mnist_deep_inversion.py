"""`fashion_mnist` with DeepInversion.

    python -m experiments reproduce fashion_mnist-deep-inversion --out runs/fashion_mnist-deep-inversion

The method's settings are those of `digits-deep-inversion`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_deep_inversion, fashion_mnist

PRESET = dataclasses.replace(
    digits_deep_inversion.PRESET,
    name="fashion_mnist-deep-inversion",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(
        digits_deep_inversion.PRESET.student, cycles=2 * digits_deep_inversion.PRESET.student.cycles
    ),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
