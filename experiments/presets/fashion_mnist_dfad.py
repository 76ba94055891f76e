"""`fashion_mnist` with DFAD.

    python -m experiments reproduce fashion_mnist-dfad --out runs/fashion_mnist-dfad

The method's settings are those of `digits-dfad`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_dfad, fashion_mnist

PRESET = dataclasses.replace(
    digits_dfad.PRESET,
    name="fashion_mnist-dfad",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_dfad.PRESET.student, cycles=2 * digits_dfad.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
