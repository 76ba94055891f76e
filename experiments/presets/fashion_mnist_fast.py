"""`fashion_mnist` with Fast-DFKD in 5 steps.

    python -m experiments reproduce fashion_mnist-fast --out runs/fashion_mnist-fast

The method's settings are those of `digits-fast`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_fast, fashion_mnist

PRESET = dataclasses.replace(
    digits_fast.PRESET,
    name="fashion_mnist-fast",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_fast.PRESET.student, cycles=2 * digits_fast.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
