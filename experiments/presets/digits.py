"""Scikit-learn's digits at 16×16, in minutes on a laptop: the demo."""

from abd_jax.synthesis.zskt import ZSKTConfig
from abd_jax.training.config import Preset, StudentConfig, TeacherConfig

PRESET = Preset(
    name="digits",
    dataset="digits",
    teacher=TeacherConfig(architecture="wrn-16-1", epochs=40, crop=2),
    student=StudentConfig(
        architecture="wrn-10-1", cycles=400, updates=5, evaluate_every=25, checkpoint_every=100
    ),
    synthesis=ZSKTConfig(features=64),
)
