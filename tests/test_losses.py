"""Every loss against float64 NumPy, and at the edges where a naive form breaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abd_jax import losses
from tests import reference


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def normal(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


# --- weighted_mean


def test_weighted_mean_is_the_mean_without_weights():
    values = normal(0, 7)
    np.testing.assert_allclose(losses.weighted_mean(jnp.asarray(values)), values.astype(np.float64).mean(), rtol=1e-6)


def test_weighted_mean_divides_by_the_sum_of_weights():
    values, weights = normal(0, 7), np.array([0, 1, 2, 0.5, 0, 0.1, 3], np.float32)
    expected = np.average(values.astype(np.float64), weights=weights)
    np.testing.assert_allclose(losses.weighted_mean(jnp.asarray(values), jnp.asarray(weights)), expected, rtol=1e-6)


def test_weighted_mean_of_nothing_is_zero_with_a_zero_gradient():
    values, weights = jnp.asarray(normal(0, 5)), jnp.zeros(5)
    value, gradient = jax.value_and_grad(losses.weighted_mean)(values, weights)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(5))


# --- kl_divergence


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (7,)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 6.0])
def test_kl_against_numpy(shape, temperature):
    p, q = normal(1, *shape, scale=3), normal(2, *shape, scale=3)
    result = losses.kl_divergence(jnp.asarray(p), jnp.asarray(q), temperature)
    assert result.shape == shape[:-1]
    np.testing.assert_allclose(result, reference.kl(p, q, temperature), rtol=2e-5, atol=1e-6)


def test_kl_of_two_coins_by_hand():
    p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
    np.testing.assert_allclose(losses.kl_divergence(p, q), 0.5 * np.log(2) + 0.5 * np.log(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(losses.kl_divergence(q, p), 0.25 * np.log(0.5) + 0.75 * np.log(1.5), rtol=1e-6)


def test_kl_ignores_a_shift_of_the_logits():
    p, q = jnp.asarray(normal(1, 4, 5)), jnp.asarray(normal(2, 4, 5))
    np.testing.assert_allclose(losses.kl_divergence(p, p + 3.0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(losses.kl_divergence(p + 50.0, q), losses.kl_divergence(p, q), rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_gradients_in_closed_form(temperature):
    p, q = normal(1, 4, 5, scale=2), normal(2, 4, 5, scale=2)
    total = lambda p, q: losses.kl_divergence(p, q, temperature).sum()  # noqa: E731
    by_p, by_q = jax.grad(total, argnums=(0, 1))(jnp.asarray(p), jnp.asarray(q))
    scaled_p, scaled_q = p / np.float64(temperature), q / np.float64(temperature)
    soft_p, soft_q = reference.softmax(scaled_p), reference.softmax(scaled_q)
    difference = reference.log_softmax(scaled_p) - reference.log_softmax(scaled_q)
    expected_p = soft_p * (difference - reference.kl(p, q, temperature)[:, None]) / temperature
    np.testing.assert_allclose(by_p, expected_p, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(by_q, (soft_q - soft_p) / temperature, rtol=1e-4, atol=1e-6)


def naive_kl(logits_p, logits_q):
    p, q = jax.nn.softmax(logits_p), jax.nn.softmax(logits_q)
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=-1)


def test_kl_equals_the_naive_form_where_that_is_stable():
    p, q = jnp.asarray(normal(1, 6, 5)), jnp.asarray(normal(2, 6, 5))
    np.testing.assert_allclose(losses.kl_divergence(p, q), naive_kl(p, q), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]),
        ([1e4, -1e4, 0.0], [1e4, -1e4, 0.0]),
        ([0.0, 0.0, 0.0], [1e4, -1e4, -1e4]),
        ([-1e4, -1e4, -1e4], [1e4, 1e4, 1e4]),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_kl_and_its_gradients_at_extreme_logits(p, q, temperature):
    p, q = jnp.array([p]), jnp.array([q])
    total = lambda p, q: losses.kl_divergence(p, q, temperature).sum()  # noqa: E731
    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(p, q)
    np.testing.assert_allclose(value, reference.kl(p, q, temperature)[0], rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_naive_kl_does_break_at_extreme_logits():
    p, q = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([[-1e4, 1e4, 0.0]])
    assert not np.isfinite(naive_kl(p, q)).all()


# --- attention


def test_attention_map_against_numpy():
    activation = normal(3, 4, 3, 5, 6, scale=2)
    result = losses.attention_map(jnp.asarray(activation))
    assert result.shape == (4, 15)
    np.testing.assert_allclose(result, reference.attention_map(activation), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), np.ones(4), rtol=1e-5)


def test_attention_map_by_hand():
    activation = jnp.array([[[[1.0, 7.0]], [[-5.0, 5.0]], [[0.0, 0.0]]]])  # channel means of squares: 25, 25, 0
    np.testing.assert_allclose(losses.attention_map(activation), [[np.sqrt(0.5), np.sqrt(0.5), 0]], rtol=1e-6)


def test_attention_map_of_half_precision_is_computed_in_float32():
    activation = jnp.asarray(normal(3, 2, 3, 3, 8), jnp.bfloat16)
    result = losses.attention_map(activation)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, reference.attention_map(activation), rtol=1e-5)


def test_attention_of_dead_activations_has_a_finite_gradient():
    alive = losses.attention_map(jnp.asarray(normal(4, 2, 3, 3, 4)))

    def loss(activation):
        return losses.attention_transfer([losses.attention_map(activation)], [alive]).sum()

    value, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 3, 3, 4)))
    np.testing.assert_allclose(value, 2 / 9, rtol=1e-5)  # two images: the mean square of a unit vector of nine
    assert np.isfinite(gradient).all()


def test_attention_transfer_against_numpy():
    student = [normal(5, 3, 4, 4, 2), normal(6, 3, 2, 2, 8)]
    teacher = [normal(7, 3, 4, 4, 6), normal(8, 3, 2, 2, 3)]
    maps = [[losses.attention_map(jnp.asarray(a)) for a in activations] for activations in (student, teacher)]
    expected = sum(
        np.square(reference.attention_map(s) - reference.attention_map(t)).mean(axis=-1)
        for s, t in zip(student, teacher, strict=True)
    )
    result = losses.attention_transfer(*maps)
    assert result.shape == (3,)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("teacher", [[(3, 9)], [(3, 16), (3, 4)], []])
def test_attention_transfer_refuses_other_resolutions(teacher):
    with pytest.raises(ValueError, match=r"differ in shape: \[\(3, 16\)\] and"):
        losses.attention_transfer([jnp.ones((3, 16))], [jnp.ones(shape) for shape in teacher])


# --- class_imbalance


def test_class_imbalance_against_numpy():
    logits = normal(9, 8, 5, scale=2)
    mean = reference.softmax(logits).mean(axis=0)
    np.testing.assert_allclose(losses.class_imbalance(jnp.asarray(logits)), (mean * np.log(mean)).sum(), rtol=1e-5)


def test_class_imbalance_is_lowest_for_a_balanced_batch_and_zero_for_one_class():
    balanced, single = 1e4 * jnp.eye(4), 1e4 * jnp.eye(4)[:1].repeat(4, axis=0)
    np.testing.assert_allclose(losses.class_imbalance(balanced), -np.log(4), rtol=1e-6)
    np.testing.assert_allclose(losses.class_imbalance(single), 0, atol=1e-6)
    for logits in (balanced, single):
        assert np.isfinite(jax.grad(losses.class_imbalance)(logits)).all()


# --- cross_entropy


def test_cross_entropy_against_numpy():
    logits, labels = normal(10, 6, 5, scale=3), np.array([0, 4, 2, 2, 1, 3])
    result = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(result, -reference.log_softmax(logits)[np.arange(6), labels], rtol=1e-5)


def test_cross_entropy_at_extreme_logits():
    logits, labels = jnp.array([[1e4, -1e4], [-1e4, 1e4]]), jnp.array([0, 0])
    value, gradient = jax.value_and_grad(lambda logits: losses.cross_entropy(logits, labels).sum())(logits)
    np.testing.assert_allclose(value, 2e4, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0], [-1, 1]], atol=1e-6)


# --- jensen_shannon


def test_jensen_shannon_against_numpy():
    p, q = normal(11, 6, 5, scale=3), normal(12, 6, 5, scale=3)
    soft_p, soft_q = reference.softmax(p / 2), reference.softmax(q / 2)
    middle = (soft_p + soft_q) / 2
    expected = (soft_p * np.log(soft_p / middle) + soft_q * np.log(soft_q / middle)).sum(axis=-1) / 2
    result = losses.jensen_shannon(jnp.asarray(p), jnp.asarray(q), 2.0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


def test_jensen_shannon_lies_between_zero_and_log_two():
    certain = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    value, gradient = jax.value_and_grad(lambda q: losses.jensen_shannon(certain, q).sum())(certain[:, ::-1])
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(losses.jensen_shannon(certain, certain), 0, atol=1e-6)


# --- batch_norm_distance


def test_batch_norm_distance_against_numpy():
    own = [(normal(13, 4), normal(14, 4)), (normal(15, 7), normal(16, 7))]
    stored = [(normal(17, 4), normal(18, 4)), (normal(19, 7), normal(20, 7))]
    expected = sum(np.linalg.norm(np.float64(a) - b) for x, y in zip(own, stored) for a, b in zip(x, y))  # noqa: B905
    result = losses.batch_norm_distance(*jax.tree.map(jnp.asarray, (own, stored)))
    np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_batch_norm_distance_has_a_gradient_where_it_is_zero():
    moments = ((jnp.ones(3), jnp.ones(3)),)
    value, gradient = jax.value_and_grad(losses.batch_norm_distance)(moments, moments)
    assert value == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


# --- total_variation


def test_total_variation_against_numpy():
    x = normal(21, 3, 5, 4, 2)
    wide = np.float64(x)
    shifts = (
        wide[:, :, 1:] - wide[:, :, :-1],
        wide[:, 1:] - wide[:, :-1],
        wide[:, 1:, 1:] - wide[:, :-1, :-1],
        wide[:, 1:, :-1] - wide[:, :-1, 1:],
    )
    expected = sum(np.sqrt(np.square(shift).sum()) for shift in shifts)
    np.testing.assert_allclose(losses.total_variation(jnp.asarray(x)), expected, rtol=1e-6)
    assert losses.total_variation(jnp.ones((2, 4, 4, 1))) == 0
    assert np.isfinite(jax.grad(losses.total_variation)(jnp.ones((2, 4, 4, 1)))).all()


# --- agreed_divergence


def test_agreed_divergence_counts_only_equal_decisions():
    p, q = normal(22, 40, 3, scale=2), normal(23, 40, 3, scale=2)
    agree = p.argmax(-1) == q.argmax(-1)
    assert 5 < agree.sum() < 35
    expected = np.where(agree, reference.kl(p, q), 0)
    np.testing.assert_allclose(losses.agreed_divergence(jnp.asarray(p), jnp.asarray(q)), expected, rtol=1e-4, atol=1e-6)


# --- contrastive


@pytest.mark.parametrize("present", [6, 4, 1])
def test_contrastive_against_numpy(present):
    queries, keys = normal(24, 6, 3), normal(25, 6, 3)
    similarity = np.float64(queries[:present]) @ keys[:present].T / 0.5
    expected = np.zeros(6)
    expected[:present] = -np.diag(reference.log_softmax(similarity))
    mask = jnp.arange(6) < present
    loss = lambda q, k: losses.contrastive(q, k, mask, 0.5)  # noqa: E731
    np.testing.assert_allclose(loss(jnp.asarray(queries), jnp.asarray(keys)), expected, rtol=1e-4, atol=1e-6)
    gradients = jax.grad(lambda q, k: loss(q, k).sum(), argnums=(0, 1))(jnp.asarray(queries), jnp.asarray(keys))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert (np.asarray(gradients[0])[present:] == 0).all()


def test_contrastive_with_nothing_present_is_zero():
    x = jnp.asarray(normal(26, 4, 3))
    np.testing.assert_array_equal(losses.contrastive(x, x, jnp.zeros(4, bool), 0.1), 0)
