"""`fashion_mnist` with Adaptive DeepInversion: pixels are moved towards what the student gets wrong, too.

    python -m experiments reproduce fashion_mnist-adi --out runs/fashion_mnist-adi

All else is as in `fashion_mnist-deep-inversion`, with twice its cycles, as on digits. Not run to the end by us
yet, so no results.
"""

import dataclasses

from experiments.presets import digits_adi, fashion_mnist_deep_inversion

PRESET = dataclasses.replace(
    fashion_mnist_deep_inversion.PRESET,
    name="fashion_mnist-adi",
    student=dataclasses.replace(
        fashion_mnist_deep_inversion.PRESET.student, cycles=2 * digits_adi.PRESET.student.cycles
    ),
    synthesis=digits_adi.PRESET.synthesis,
)
