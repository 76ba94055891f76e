"""Channel Lipschitz bounds (Zheng et al., ECCV 2022, arXiv 2208.03111): channels that can amplify a small pattern.

Of output channel k of a convolution with kernel W, followed by batch normalization with scale γ and variance σ²:
u_k = ‖W_k‖₂ · |γ_k| / √(σ²_k + ε), W_k the `[inputs, height · width]` matrix. A backdoor's channels stand out of their
layer. The weights alone are read: no image takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Float

from abd_jax.models import Network
from abd_jax.models.layers import BATCH_NORM_EPSILON


def bounds(network: Network) -> dict[str, Float[np.ndarray, " channels"]]:
    """u of every output channel of every kernel, by the kernel's path, in forward order.

    A kernel is paired with the batch normalization that is called right after it, as in the published code; where
    none of as many channels is, the factor is 1.
    """
    flat = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_dict(dict(network.variables), sep="/").items()}
    called = _calls(network)
    kernels = {path for path in called if getattr(flat.get(f"params/{path}/kernel"), "ndim", 0) == 4}
    calls = [path for path in called if path in kernels or path in network.module.batch_norms]
    found = {}
    for path, after in itertools.pairwise([*calls, ""]):
        if path not in kernels:
            continue
        kernel = flat[f"params/{path}/kernel"]
        matrices = kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[3], kernel.shape[2], -1)
        norms = np.linalg.norm(matrices, ord=2, axis=(1, 2))
        if after in network.module.batch_norms and flat[f"params/{after}/scale"].shape == norms.shape:
            deviation = np.sqrt(flat[f"batch_stats/{after}/var"] + BATCH_NORM_EPSILON)
            norms = norms * np.abs(flat[f"params/{after}/scale"]) / deviation
        found[path] = norms
    return found


def deviations(found: dict[str, Float[np.ndarray, " channels"]]) -> dict[str, Float[np.ndarray, " channels"]]:
    """How many standard deviations each u lies above the mean of its layer; the published bar is 3."""
    return {path: (values - values.mean()) / max(float(values.std()), 1e-12) for path, values in found.items()}


def _calls(network: Network) -> list[str]:
    """Paths of all modules in the order in which they are called."""
    calls: list[str] = []

    def note(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__":
            calls.append("/".join(context.module.path))
        return function(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda images: network(images).logits, jax.ShapeDtypeStruct((1, *network.input_shape), jnp.float32)
        )
    return calls
