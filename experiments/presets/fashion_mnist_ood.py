"""`fashion_mnist` with patches of one photograph.

    python -m experiments reproduce fashion_mnist-ood --out runs/fashion_mnist-ood

The method's settings are those of `digits-ood`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_ood, fashion_mnist

PRESET = dataclasses.replace(
    digits_ood.PRESET,
    name="fashion_mnist-ood",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_ood.PRESET.student, cycles=2 * digits_ood.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
