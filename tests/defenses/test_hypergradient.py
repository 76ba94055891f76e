"""The implicit hypergradient against dense float64 computations, and finite differences of the unrolled problem."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from abd_jax.defenses.hypergradient import implicit_hypergradient

RATE = 0.1
solve = jax.jit(implicit_hypergradient, static_argnums=(0, 1, 4))


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


# --- a quadratic inner problem, solved exactly


def quadratic(seed=0, size=4, parameters=3):
    """Φ(δ, θ) = δ − ¼(Aδ − Bθ), so δ* = A⁻¹Bθ; outer = ½‖δ − c‖² + dᵀδ·(eᵀθ) + ½‖θ‖²."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    a = root @ root.T / size + np.eye(size)
    b, c, d = rng.normal(size=(size, parameters)), rng.normal(size=size), rng.normal(size=size)
    e, theta = rng.normal(size=parameters), rng.normal(size=parameters)

    def fixed_point(delta, theta):
        return delta - (a @ delta - b @ theta) / 4

    def outer(delta, theta):
        return 0.5 * jnp.sum((delta - c) ** 2) + (d @ delta) * (e @ theta) + 0.5 * jnp.sum(theta**2)

    solution = np.linalg.solve(a, b @ theta)
    by_delta = solution - c + d * (e @ theta)
    by_theta = e * (d @ solution) + theta
    exact = by_theta + np.linalg.solve(a, b).T @ by_delta
    contraction = np.abs(np.linalg.eigvals(np.eye(size) - a / 4)).max()
    return outer, fixed_point, jnp.asarray(solution), jnp.asarray(theta), exact, by_theta, contraction


def hypergradient(problem, iterations):
    outer, fixed_point, delta, theta = problem[:4]
    value, gradient = solve(outer, fixed_point, delta, theta, iterations)
    np.testing.assert_allclose(value, outer(delta, theta), rtol=1e-12)
    return np.asarray(gradient)


def test_no_iteration_leaves_the_direct_gradient():
    problem = quadratic()
    np.testing.assert_allclose(hypergradient(problem, 0), problem[5], rtol=1e-12)


def test_many_iterations_give_the_exact_hypergradient():
    problem = quadratic()
    assert np.abs(problem[4] - problem[5]).max() > 0.1  # the implicit part matters
    np.testing.assert_allclose(hypergradient(problem, 100), problem[4], rtol=1e-9)


def test_the_error_shrinks_as_the_contraction_says():
    problem = quadratic()
    errors = [np.linalg.norm(hypergradient(problem, iterations) - problem[4]) for iterations in (0, 5, 10, 20, 40)]
    ratios = np.array(errors[1:]) / errors[:-1]
    assert (ratios < 1).all()
    slowest = problem[6]
    assert errors[-1] <= 10 * slowest**40 * errors[0]


# --- a small perceptron as the inner problem, at a δ that is not its solution


@functools.cache
def perceptron():
    rng = np.random.default_rng(1)
    params = {
        "hidden": {"kernel": jnp.asarray(rng.normal(size=(3, 5))), "bias": jnp.asarray(rng.normal(size=5))},
        "out": jnp.asarray(rng.normal(size=(5, 2)) / 2),
    }
    inputs = jnp.asarray(rng.normal(size=(6, 3)))

    def scores(params, x):
        return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]

    def change(delta, params):
        return jnp.mean((scores(params, inputs + delta) - scores(params, inputs)) ** 2)

    def fixed_point(delta, params):
        return delta - RATE * jax.grad(lambda delta: 2 * jnp.sum((delta - 0.3) ** 2) - change(delta, params))(delta)

    def outer(delta, params):
        return change(2 * delta, params) + 0.1 * jnp.sum(params["out"] ** 2)

    return outer, fixed_point, jnp.asarray(rng.normal(size=3)), params


def flattened(function, params):
    """The function of a parameter vector instead of a tree, that vector, and the way back."""
    vector, unflatten = ravel_pytree(params)
    return (lambda delta, theta: function(delta, unflatten(theta))), vector, unflatten


@functools.cache
def dense():
    """The perceptron's four Jacobians, as NumPy matrices: outer by δ and θ, Φ by δ and θ."""
    outer, fixed_point, delta, params = perceptron()
    outer_of, theta, _ = flattened(outer, params)
    point_of, _, _ = flattened(fixed_point, params)
    gradients = jax.jit(jax.grad(outer_of, argnums=(0, 1)))(delta, theta)
    jacobians = jax.jit(jax.jacobian(point_of, argnums=(0, 1)))(delta, theta)
    return tuple(map(np.asarray, (*gradients, *jacobians)))


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_k_substitutions_are_k_terms_of_the_neumann_series(iterations):
    outer, fixed_point, delta, params = perceptron()
    by_delta, by_theta, a, b = dense()
    v = sum((np.linalg.matrix_power(a.T, k) @ by_delta for k in range(iterations)), np.zeros(3))
    _, gradient = solve(outer, fixed_point, delta, params, iterations)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    result, _ = ravel_pytree(gradient)
    np.testing.assert_allclose(result, by_theta + b.T @ v, rtol=1e-10, atol=1e-12)


def test_many_substitutions_solve_the_linear_system():
    outer, fixed_point, delta, params = perceptron()
    by_delta, by_theta, a, b = dense()
    assert np.abs(np.linalg.eigvals(a)).max() < 0.85
    expected = by_theta + b.T @ np.linalg.solve(np.eye(3) - a.T, by_delta)
    _, gradient = solve(outer, fixed_point, delta, params, 100)
    np.testing.assert_allclose(ravel_pytree(gradient)[0], expected, rtol=1e-8, atol=1e-10)


def test_it_is_the_derivative_of_the_unrolled_problem():
    """Central differences of θ ↦ outer(Φᴺ(δ₀, θ), θ) with N large, in every coordinate."""
    outer, fixed_point, start, params = perceptron()
    point_of, theta, unflatten = flattened(fixed_point, params)
    outer_of, _, _ = flattened(outer, params)

    @jax.jit
    @jax.vmap
    def unrolled(theta):
        delta = jax.lax.fori_loop(0, 400, lambda _, delta: point_of(delta, theta), start)
        return outer_of(delta, theta), delta

    step = 1e-5
    moved = step * jnp.eye(theta.size)
    slope = (unrolled(theta[None] + moved)[0] - unrolled(theta[None] - moved)[0]) / (2 * step)
    solution = unrolled(theta[None])[1][0]
    np.testing.assert_allclose(point_of(solution, theta), solution, atol=1e-12)
    errors = {}
    for iterations in (0, 1, 5, 90):
        _, gradient = solve(outer, fixed_point, solution, unflatten(theta), iterations)
        errors[iterations] = np.abs(ravel_pytree(gradient)[0] - slope).max()
    assert errors[0] > errors[1] > errors[5] > errors[90]
    assert errors[0] > 1e-2
    assert errors[90] < 1e-7


def test_the_map_is_linearized_once():
    outer, fixed_point, delta, params = perceptron()
    calls = []

    def counted(delta, params):
        calls.append(1)
        return fixed_point(delta, params)

    solve(outer, counted, delta, params, 5)
    assert len(calls) == 1
