"""`fashion_mnist` with NAYER.

    python -m experiments reproduce fashion_mnist-nayer --out runs/fashion_mnist-nayer

The method's settings are those of `digits-nayer`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_nayer, fashion_mnist

PRESET = dataclasses.replace(
    digits_nayer.PRESET,
    name="fashion_mnist-nayer",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_nayer.PRESET.student, cycles=2 * digits_nayer.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
