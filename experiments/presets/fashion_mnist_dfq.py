"""`fashion_mnist` with DFQ.

    python -m experiments reproduce fashion_mnist-dfq --out runs/fashion_mnist-dfq

The method's settings are those of `digits-dfq`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_dfq, fashion_mnist

PRESET = dataclasses.replace(
    digits_dfq.PRESET,
    name="fashion_mnist-dfq",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_dfq.PRESET.student, cycles=2 * digits_dfq.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
