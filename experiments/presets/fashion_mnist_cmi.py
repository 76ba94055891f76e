"""`fashion_mnist` with contrastive model inversion.

    python -m experiments reproduce fashion_mnist-cmi --out runs/fashion_mnist-cmi

The method's settings are those of `digits-cmi`, with twice the cycles; teacher and defense are those of
`fashion_mnist`. Not run to the end by us yet, so no results.
"""

import dataclasses

from experiments.presets import digits_cmi, fashion_mnist

PRESET = dataclasses.replace(
    digits_cmi.PRESET,
    name="fashion_mnist-cmi",
    dataset="fashion_mnist",
    teacher=fashion_mnist.PRESET.teacher,
    student=dataclasses.replace(digits_cmi.PRESET.student, cycles=2 * digits_cmi.PRESET.student.cycles),
    clean_kd=fashion_mnist.PRESET.clean_kd,
)
