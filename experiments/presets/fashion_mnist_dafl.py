"""`fashion_mnist` with DAFL.

    python -m experiments reproduce fashion_mnist-dafl --out runs/fashion_mnist-dafl

The method's settings are those of `digits-dafl`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_dafl, fashion_mnist

PRESET = dataclasses.replace(
    digits_dafl.PRESET,
    name="fashion_mnist-dafl",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_dafl.PRESET.student, cycles=2 * digits_dafl.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
