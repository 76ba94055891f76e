"""Self-Retrospection against float64: the ascent step by step, the hypergradient by dense Jacobians and differences."""

import functools
import itertools
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from abd_jax.defenses import self_retrospection
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from tests import networks, reference

SHAPE, BATCH = (4, 4, 1), 4
STRONG = RetrospectionConfig(fixed_point_rate=25.0, decay=0.01, iterations=2)  # the implicit part weighs much
ascend = jax.jit(self_retrospection.ascend, static_argnums=0)
begin_ascent = jax.jit(self_retrospection.begin_ascent, static_argnums=0)
unlearn = jax.jit(self_retrospection.unlearn, static_argnums=0)


def change(config, **options):
    return RetrospectionConfig(**(vars(config) | options))


def key(seed=0):
    return jax.random.key(seed)


def sensitive(seed, **options):
    """A small network whose logits are far apart, so that divergences are well above rounding."""
    network = networks.tiny(seed, **options)
    params = dict(network.params)
    params["fc"] = {"kernel": 10 * params["fc"]["kernel"], "bias": params["fc"]["bias"]}
    return network.with_params(params)


STUDENT, TEACHER = sensitive(0), sensitive(1)
IMAGES = networks.images(3, BATCH, SHAPE)
TEACHER_LOGITS = jnp.asarray(np.random.default_rng(8).normal(0, 2, (BATCH, 3)), jnp.float32)


def perturbation(scale=0.7):
    return jnp.asarray(np.random.default_rng(5).normal(0, scale, SHAPE), jnp.float32)


# --- the reference: `networks.Tiny` by hand, in double precision; δ is added to the standardized image


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), tree)


def logits_by_hand(params, stats, x, norm):
    size, height, width = 3, x.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h = sum(
        padded[:, row : row + height, column : column + width] @ params["conv"]["kernel"][row, column]
        for row, column in itertools.product(range(size), repeat=2)
    )
    mean, variance = (h.mean((0, 1, 2)), h.var((0, 1, 2))) if norm == "batch" else (stats["mean"], stats["var"])
    h = params["bn"]["scale"] * (h - mean) / jnp.sqrt(variance + 1e-5) + params["bn"]["bias"]
    return jnp.log1p(jnp.exp(h)).mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


def divergence_by_hand(network, norm, delta, params=None, mask=None, clean="student", count=BATCH):
    """Mean over images and classes of KL(clean ‖ f(x + δ)); to be called in double precision.

    The clean branch is f(x), f(x) without a gradient (`detached`), or what the teacher said (`teacher`).
    """
    variables = double(network.variables)
    params, stats = params or variables["params"], variables["batch_stats"]["bn"]
    x = (double(IMAGES)[:count] - np.array(network.mean)) / np.array(network.std)
    mask = jnp.ones(count) if mask is None else jnp.asarray(mask, jnp.float64)
    own = logits_by_hand(params, stats, x, norm)
    p = {"student": own, "detached": jax.lax.stop_gradient(own), "teacher": double(TEACHER_LOGITS)[:count]}[clean]
    p = jax.nn.log_softmax(p)
    q = jax.nn.log_softmax(logits_by_hand(params, stats, x + mask[:, None, None, None] * delta, norm))
    return jnp.mean(jnp.exp(p) * (p - q))


@functools.cache
def pieces(norm):
    """Outer value and gradients for each clean branch, then ∇²δ and ∇θ∇δ of −KL; all flattened."""
    theta, unflatten = ravel_pytree(double(STUDENT.params))

    def divergence(delta, theta, mask=None, clean="student"):
        return divergence_by_hand(STUDENT, norm, delta.reshape(SHAPE), unflatten(theta), mask, clean)

    def inner_slope(delta, theta):
        return jax.grad(lambda delta: -divergence(delta, theta))(delta)

    outer = jax.value_and_grad(divergence, argnums=(0, 1))
    matrices = jax.jacobian(inner_slope, argnums=(0, 1))
    return jax.jit(
        lambda delta, mask: (
            {clean: outer(delta, theta, mask, clean) for clean in ("student", "detached", "teacher")},
            matrices(delta, theta),
        )
    )


def dense_hypergradient(config, delta, mask=(1,) * BATCH):
    """∂outer/∂θ + Bᵀ Σ_{k<K} (Aᵀ)ᵏ ∂outer/∂δ, with A = ∂Φ/∂δ and B = ∂Φ/∂θ written out as matrices."""
    with jax.enable_x64(True):
        outer, (hessian, mixed) = pieces(config.norm)(double(delta).reshape(-1), jnp.asarray(mask, jnp.float64))
        outer, hessian, mixed = jax.tree.map(np.asarray, (outer, hessian, mixed))
    clean = "teacher" if config.anchor == "teacher" else "student" if config.clean_gradient else "detached"
    value, (by_delta, by_theta) = outer[clean]
    one = np.eye(len(by_delta))
    a = one - config.fixed_point_rate * (hessian + 2 * config.decay * one)
    b = -config.fixed_point_rate * mixed
    v = sum((np.linalg.matrix_power(a.T, k) @ by_delta for k in range(config.iterations)), 0 * by_delta)
    return SimpleNamespace(value=value, direct=by_theta, whole=by_theta + b.T @ v)


def as_vector(gradient):
    return np.asarray(ravel_pytree(gradient)[0], np.float64)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# --- the hypergradient


@pytest.mark.parametrize(
    "options",
    [{"iterations": 1}, {"iterations": 4}, {"norm": "running"}, {"clean_gradient": False}, {"anchor": "teacher"}],
    ids=str,
)
def test_the_hypergradient_against_dense_jacobians(options):
    config = change(STRONG, **options)
    gradient, metrics = unlearn(config, key(), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, STUDENT.params)
    expected = dense_hypergradient(config, perturbation())
    assert distance(expected.direct, expected.whole) > 0.02  # so an error in the implicit part shows
    assert distance(as_vector(gradient), expected.whole) < 1e-3
    np.testing.assert_allclose(metrics["retrospection/divergence"], expected.value, rtol=1e-4)
    np.testing.assert_allclose(metrics["retrospection/delta_norm"], np.linalg.norm(perturbation()), rtol=1e-5)


def test_without_iterations_it_is_the_direct_gradient():
    config = change(STRONG, iterations=0)
    gradient, _ = unlearn(config, key(), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
    assert distance(as_vector(gradient), dense_hypergradient(config, perturbation()).direct) < 1e-3


def test_the_detached_clean_branch_makes_a_difference():
    kept, detached = (
        dense_hypergradient(change(STRONG, clean_gradient=keep), perturbation()) for keep in (True, False)
    )
    assert distance(kept.whole, detached.whole) > 0.1


def test_a_portion_perturbs_some_images_and_averages_over_all():
    config = change(STRONG, portion=0.5)
    seen = set()
    for seed in range(3):
        gradient, metrics = unlearn(config, key(seed), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
        masks = [np.isin(range(BATCH), chosen) for chosen in itertools.combinations(range(BATCH), 2)]
        candidates = [dense_hypergradient(config, perturbation(), mask) for mask in masks]
        nearest = min(range(len(masks)), key=lambda i: distance(as_vector(gradient), candidates[i].whole))
        assert distance(as_vector(gradient), candidates[nearest].whole) < 1e-3
        np.testing.assert_allclose(metrics["retrospection/divergence"], candidates[nearest].value, rtol=1e-4)
        seen.add(nearest)
    assert len(seen) > 1  # another key, other images


def test_no_image_at_all_has_no_hypergradient():
    config = change(STRONG, portion=0.02, round_down=True, iterations=1)
    assert config.perturbed(BATCH) == 0
    gradient, metrics = unlearn(config, key(), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
    assert metrics["retrospection/divergence"] == pytest.approx(0, abs=1e-7)
    assert np.abs(as_vector(gradient)).max() < 1e-6


@pytest.mark.parametrize(
    ("portion", "batch", "at_least_one", "rounded_down"),
    [(1.0, 128, 128, 128), (0.02, 128, 3, 2), (0.02, 49, 1, 0), (0.02, 50, 1, 1), (0.5, 7, 4, 3), (0.0, 128, 1, 0)],
)
def test_how_many_images_are_perturbed(portion, batch, at_least_one, rounded_down):
    assert RetrospectionConfig(portion=portion).perturbed(batch) == at_least_one
    assert RetrospectionConfig(portion=portion, round_down=True).perturbed(batch) == rounded_down


def test_the_weight_scales_the_gradient_and_not_the_metrics():
    (plain, metrics), (doubled, same) = (
        unlearn(change(STRONG, weight=weight, iterations=1), key(), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
        for weight in (1.0, 2.0)
    )
    assert distance(as_vector(doubled), 2 * as_vector(plain)) < 1e-5
    chex.assert_trees_all_close(metrics, same, rtol=1e-6)


def test_batch_statistics_absorb_a_shift_that_the_whole_batch_shares():
    """With 1×1 kernels, a constant δ moves every activation of a channel alike: batch normalization takes it out."""
    network, delta = sensitive(2, size=1), jnp.full(SHAPE, 0.8)
    values = {}
    for norm in ("batch", "running"):
        config = change(STRONG, norm=norm, iterations=0)
        _, metrics = unlearn(config, key(), delta, network, IMAGES, TEACHER_LOGITS)
        values[norm] = float(metrics["retrospection/divergence"])
    assert abs(values["batch"]) < 1e-6 < 1e-3 < values["running"]


def test_the_student_is_left_as_it_is():
    before = jax.tree.map(np.array, STUDENT.variables)
    gradient, _ = unlearn(STRONG, key(), perturbation(), STUDENT, IMAGES, TEACHER_LOGITS)
    chex.assert_trees_all_equal(STUDENT.variables, before)
    assert set(gradient) == set(STUDENT.params)  # nothing for the running statistics


def test_a_wide_resnet_against_differences():
    """WRN-10-1, K = 1, along one direction of θ: no derivative but differences of a float64 NumPy network."""
    network, x = networks.network(seed=4), networks.images(6, 2)
    config = RetrospectionConfig(fixed_point_rate=10.0, iterations=1)
    rng = np.random.default_rng(0)
    delta = rng.normal(0, 0.2, x.shape[1:]).astype(np.float32)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), network.params)
    length = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(direction)))
    direction = jax.tree.map(lambda leaf: leaf / length, direction)

    def divergence(delta, moved=0.0):
        """At θ + moved · direction."""
        params = jax.tree.map(lambda leaf, u: np.asarray(leaf, np.float64) + moved * u, network.params, direction)
        shifted = np.asarray(x, np.float64) + delta * np.array(network.std)
        clean, other = (
            reference.wide_resnet({"params": params}, 10, 1, images, network.mean, network.std, "batch").logits
            for images in (x, shifted)
        )
        return reference.kl(clean, other).mean() / clean.shape[-1]

    step = 1e-5
    moves = step * np.eye(delta.size).reshape(-1, *delta.shape)
    v = np.array([divergence(delta + move) - divergence(delta - move) for move in moves]) / (2 * step)
    v = v.reshape(delta.shape)
    size = step / np.linalg.norm(v)
    along_v = [(divergence(delta + size * v, t) - divergence(delta - size * v, t)) / (2 * size) for t in (step, -step)]
    implicit = config.fixed_point_rate * (along_v[0] - along_v[1]) / (2 * step)
    direct = (divergence(delta, step) - divergence(delta, -step)) / (2 * step)

    gradient, metrics = unlearn(config, key(), jnp.asarray(delta), network, x, jnp.zeros((2, 4)))
    np.testing.assert_allclose(metrics["retrospection/divergence"], divergence(delta), rtol=1e-3)
    products = jax.tree.map(lambda g, u: (np.asarray(g, np.float64) * u).sum(), gradient, direction)
    assert abs(implicit) > 0.1 * abs(direct)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), direct + implicit, rtol=1e-2)


# --- δ


@functools.cache
def slope_of(perturb, norm, count):
    network = STUDENT if perturb == "student" else TEACHER
    return jax.jit(jax.grad(lambda delta: -divergence_by_hand(network, norm, delta, count=count)))


def slope_by_hand(config, delta):
    """∇δ of decay·‖δ‖² − KL for the network that `perturb` names."""
    norm = config.norm if config.perturb == "student" else "running"
    with jax.enable_x64(True):
        slope = slope_of(config.perturb, norm, round(config.ascent_share * BATCH))(jnp.asarray(delta))
        return np.asarray(slope) + 2 * config.decay * delta


def ascent_by_hand(config, delta):
    """δ after `ascent_steps` steps."""
    first, second = np.zeros(SHAPE), np.zeros(SHAPE)
    for step in range(1, config.ascent_steps + 1):
        slope = slope_by_hand(config, delta)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        if config.ascent == "adam":
            slope = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        elif config.ascent == "normalized":
            slope = slope / np.linalg.norm(slope)
        delta = delta - config.ascent_rate * slope
        if config.pixels:
            delta = np.where(np.abs(delta) >= np.sort(np.abs(delta), axis=None)[-config.pixels], delta, 0)
        length = np.linalg.norm(delta)
        if config.epsilon and length > config.epsilon:
            delta = delta * config.epsilon / length
    return delta


def found(config, start=None, own=None, foreign=None):
    """δ after `ascent_steps` steps of the library, from its own start or from the one given."""
    pair = (own or STUDENT, foreign or TEACHER)
    ascent = begin_ascent(config, key(9), *pair, IMAGES, jnp.zeros(SHAPE), 0)
    if start is not None:
        ascent = ascent.replace(delta=start)
    for _ in range(config.ascent_steps):
        ascent = ascend(config, ascent, *pair)
    return np.asarray(ascent.delta, np.float64)


@pytest.mark.optax
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm": "running", "epsilon": 0.4},
        {"perturb": "teacher"},
        {"perturb": "teacher", "ascent": "sgd", "ascent_rate": 3.0, "epsilon": 0.7},
        {"ascent": "sgd", "ascent_rate": 3.0, "decay": 0.05},
        {"ascent": "normalized"},
        {"pixels": 3},
        {"ascent_share": 0.5},
    ],
    ids=str,
)
def test_the_ascent_step_by_step(options):
    config = RetrospectionConfig(**({"ascent_steps": 4} | options))
    start = perturbation(0.2)
    expected = ascent_by_hand(config, np.asarray(start, np.float64))
    assert distance(np.asarray(start, np.float64), expected) > 0.1
    assert distance(found(config, start), expected) < 1e-3
    if config.epsilon:
        assert np.linalg.norm(expected) == pytest.approx(config.epsilon)  # the ball did matter


@pytest.mark.optax
def test_an_ascent_ascends_and_stays_in_the_ball():
    config = RetrospectionConfig(ascent_steps=8)
    free, bound = found(config), found(change(config, epsilon=0.5))
    assert np.linalg.norm(free) > 0.5
    assert np.linalg.norm(bound) <= 0.5 * (1 + 1e-5)
    with jax.enable_x64(True):
        values = [float(divergence_by_hand(STUDENT, "batch", jnp.asarray(d))) for d in (0 * bound, bound, free)]
    assert 0 == values[0] < values[1] < values[2]


@pytest.mark.optax
def test_perturb_says_whose_output_is_looked_at():
    """The other network does not matter."""
    config, start = RetrospectionConfig(ascent_steps=1), perturbation(0.2)
    other = sensitive(7)
    on_student, on_teacher = change(config, perturb="student"), change(config, perturb="teacher")
    np.testing.assert_array_equal(found(on_student, start), found(on_student, start, foreign=other))
    np.testing.assert_array_equal(found(on_teacher, start), found(on_teacher, start, own=other))
    assert distance(found(on_student, start), found(on_student, start, own=other)) > 0.01
    assert distance(found(on_teacher, start), found(on_teacher, start, foreign=other)) > 0.01


@pytest.mark.optax
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_plain_ascent_from_zero_never_moves(norm):
    """The KL between a network and itself has no slope; noise is what breaks the tie."""
    config = RetrospectionConfig(start="zeros", ascent="sgd", ascent_rate=1.0, ascent_steps=3, norm=norm)
    assert np.abs(found(config)).max() < 1e-6
    assert np.abs(found(change(config, start="noise", ascent_rate=50.0))).max() > 1e-3


def test_the_start():
    shape = (40, 50, 3)
    network, batch = networks.tiny(shape=shape), networks.images(0, 2, shape)

    def start(seed=1, update=0, **options):
        config = RetrospectionConfig(**options)
        return np.asarray(begin_ascent(config, key(seed), network, network, batch, jnp.ones(shape), update).delta)

    noise = start(sigma=0.02)
    assert noise.shape == shape
    assert np.std(noise) == pytest.approx(0.02, rel=0.05) and abs(np.mean(noise)) < 0.001
    np.testing.assert_array_equal(noise, start(sigma=0.02))
    assert (noise != start(seed=2, sigma=0.02)).any()
    assert not start(start="zeros").any()
    np.testing.assert_array_equal(start(sigma=0.02, warm_start=True), noise)
    np.testing.assert_array_equal(start(sigma=0.02, warm_start=True, update=1), np.ones(shape))
    np.testing.assert_array_equal(start(sigma=0.02, update=1), noise)


@pytest.mark.optax
def test_a_sparse_perturbation_keeps_whole_pixels():
    shape = (4, 4, 3)
    network, batch = sensitive(0, shape=shape), networks.images(0, BATCH, shape)
    config = RetrospectionConfig(pixels=3, sigma=0.1)
    ascent = begin_ascent(config, key(), network, network, batch, jnp.zeros(shape), 0)
    for _ in range(2):
        ascent = ascend(config, ascent, network, network)
        assert (
            (np.asarray(ascent.delta) != 0).all(axis=-1).sum()
            == (np.asarray(ascent.delta) != 0).any(axis=-1).sum()
            == 3
        )


# --- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1e-3}, "retrospection.sigma -0.001: allowed are numbers from 0"),
        ({"epsilon": float("nan")}, "retrospection.epsilon nan: allowed are numbers from 0"),
        ({"weight": -1.0}, "retrospection.weight -1.0"),
        ({"decay": -1.0}, "retrospection.decay -1.0"),
        ({"ascent_steps": -1}, "retrospection.ascent_steps -1"),
        ({"iterations": -1}, "retrospection.iterations -1"),
        ({"ascent_rate": 0.0}, "retrospection.ascent_rate 0.0: allowed are numbers above 0"),
        ({"fixed_point_rate": 0.0}, "retrospection.fixed_point_rate 0.0: allowed are numbers above 0"),
        ({"pixels": -1}, "retrospection.pixels -1: allowed are whole numbers from 0"),
        ({"ascent_share": 0.0}, r"retrospection.ascent_share 0.0: allowed is \(0, 1\]"),
        ({"portion": 1.5}, r"retrospection.portion 1.5: allowed is \[0, 1\]"),
        ({"restart": 0}, "retrospection.restart 0: allowed are whole numbers from 1"),
        ({"hunt": -1}, "retrospection.hunt -1: allowed are whole numbers from 0"),
        ({"start_fraction": -0.1}, r"retrospection.start_fraction -0.1: allowed is \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RetrospectionConfig(**options)
