"""What our updates are compared with computes what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax.attacks.objectives import hard_labels
from abd_jax.training import distill, keys, sharding
from abd_jax.training.distill import Distillation, Lesson, Phase
from abd_jax.training.supervised import Supervised, train_step
from experiments.bench import plain_flax
from experiments.bench.plain_flax import Batch, TrainState
from tests.training import small

pytestmark = pytest.mark.optax


def plain_state(network, rule):
    copy = jax.tree.map(jnp.array, network.variables)  # the state is donated
    return TrainState(copy["params"], copy["batch_stats"], rule.init(copy["params"]))


def close(ours, plain):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), ours, plain)


@pytest.fixture(scope="module")
def teacher():
    return small.teacher()


@pytest.fixture(scope="module")
def images(teacher):
    return jax.random.uniform(jax.random.key(3), (8, *teacher.input_shape))


def test_the_student_update_is_ours(teacher, images):
    preset = small.preset(attention=250.0, clip=5.0, reduction="sum", optimizer="sgd")  # Adam sees signs alone
    run = Distillation.make(preset, "none", teacher)
    state = run.init(small.key(), teacher)
    forward = teacher(images)
    maps, weights = tuple(map(plain_flax.attention_map, forward.stages)), jnp.linspace(0.5, 1.5, len(images))
    lesson = Lesson(images, forward.logits, maps, weights)
    module = plain_flax.named("wrn-10-1", teacher.module.num_classes, "float32")
    numbers = jnp.asarray(teacher.mean), jnp.asarray(teacher.std)
    plain, values = plain_flax.student_update(
        module,
        run.rule,
        preset.student.attention,
        plain_state(state.student, run.rule),
        Batch(images, forward.logits, maps, weights),
        *numbers,
    )
    ours, metrics = jax.jit(distill.study, static_argnums=(0, 1))(run, Phase(), small.key(), state, lesson, 0)
    close(ours.student.variables, {"params": plain.params, "batch_stats": plain.batch_stats})
    close([metrics[f"student/{name}"] for name in sorted(values)], [values[name] for name in sorted(values)])


def test_the_training_step_is_ours(teacher, images):
    config = Supervised(10, 8, learning_rate=0.1, momentum=0.9, weight_decay=5e-4, crop=0, flip=False)
    pixels, labels = (255 * images).astype(jnp.uint8), jnp.arange(8) % 10
    module = plain_flax.named("wrn-10-1", 10, "float32")
    plain, values = plain_flax.training_step(
        module,
        config.rule,
        plain_state(teacher, config.rule),
        pixels,
        labels,
        jnp.asarray(teacher.mean),
        jnp.asarray(teacher.std),
    )
    state = config.init(jax.tree.map(jnp.array, teacher))
    key = keys.stream(small.key(), "augment", 0)
    ours, metrics = train_step(config, hard_labels, key, state, None, pixels, labels, jnp.arange(8))
    close(ours.network.variables, {"params": plain.params, "batch_stats": plain.batch_stats})
    close(metrics, values)


def test_every_function_is_traced_at_the_presets_batch():
    found = list(plain_flax.functions(small.PRESET, sharding.data_mesh(2)))
    assert [part.name for part in found] == ["plain student update", "training step", "plain training step"]
    for part in found:
        assert {leaf.shape[0] for leaf in jax.tree.leaves(part.traced.args_info) if len(leaf.shape) == 4} >= {8}
        assert part.images == 8


def test_networks_that_plain_flax_lacks_are_refused():
    with pytest.raises(ValueError, match="vgg-11 is not written that way; it has wrn-DEPTH-WIDTH"):
        plain_flax.named("vgg-11", 10, "float32")
