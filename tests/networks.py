"""Small networks with random variables (batch statistics and scales too), made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from abd_jax import models
from abd_jax.models import Forward, Network
from abd_jax.models.layers import BatchNorm, Conv, gather

MEAN = {1: (0.45,), 3: (0.5, 0.4, 0.3)}
STD = {1: (0.3,), 3: (0.2, 0.25, 0.3)}


def randomized(variables, seed: int = 0):
    """The same tree with plausible random values: kernels by fan-in, scales and variances away from 1, means from 0."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        name = path[-1].key
        if name == "kernel":
            drawn = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        elif name in ("scale", "var"):
            drawn = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            drawn = rng.normal(0, 0.3, leaf.shape)
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, variables)


def shapes(name: str, *, classes: int = 4, shape: tuple[int, int, int] = (8, 8, 1), dtype: str = "float32") -> Network:
    """What `models.create` would make, as shapes."""
    channels = shape[2]
    options = dict(num_classes=classes, input_shape=shape, mean=MEAN[channels], std=STD[channels], dtype=dtype)
    return jax.eval_shape(lambda key: models.create(key, name, **options), jax.random.key(0))


def network(name: str = "wrn-10-1", seed: int = 0, **options) -> Network:
    abstract = shapes(name, **options)
    return abstract.replace(variables=randomized(abstract.variables, seed))


def images(seed: int = 0, batch: int = 6, shape: tuple[int, int, int] = (8, 8, 1)) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(batch, *shape)), jnp.float32)


class Tiny(nn.Module):
    """Convolution, batch normalization, softplus, mean over positions, linear: smooth, and quick to compile."""

    num_classes: int = 3
    features: int = 4
    size: int = 3
    kernels = ("conv",)
    batch_norms = ("bn",)
    normalized = ("conv",)

    @nn.compact
    def __call__(self, x, norm):
        h = Conv(self.features, self.size, name="conv")(x)
        h, tap = BatchNorm(name="bn")(h, norm)
        stage = nn.softplus(h)
        embedding = stage.mean(axis=(1, 2))
        return Forward(nn.Dense(self.num_classes, name="fc")(embedding), embedding, (stage,), (x,), (tap,))


def tiny(seed: int = 0, shape: tuple[int, int, int] = (4, 4, 1), **options) -> Network:
    module = Tiny(**options)
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *shape)), "running"), jax.random.key(0))
    return Network(randomized(variables, seed), module, MEAN[shape[2]], STD[shape[2]], shape)


class Pair(nn.Module):
    """`Tiny` with a second convolution, whose kernel can be shuffled."""

    num_classes: int = 3
    features: int = 4
    kernels = ("conv", "second")
    batch_norms = ("bn",)
    normalized = ("conv",)

    def setup(self):
        self.conv, self.second = Conv(self.features), Conv(self.features)
        self.bn = BatchNorm()
        self.fc = nn.Dense(self.num_classes)

    def __call__(self, x, norm):
        h, tap = self.bn(self.conv(x), norm)
        entry = nn.softplus(h)
        stage, logits, embedding = self._rest(entry, None)
        return Forward(logits, embedding, (stage,), (entry,), (tap,))

    def entry_of(self, kernel):
        return 0

    def tail(self, h, entry, gathers):
        return self._rest(h, gathers.get("second"))[1]

    def _rest(self, h, order):
        stage = nn.softplus(self.second(gather(h, order)))
        embedding = stage.mean(axis=(1, 2))
        return stage, self.fc(embedding), embedding


def pair(seed: int = 0, shape: tuple[int, int, int] = (4, 4, 1), **options) -> Network:
    module = Pair(**options)
    variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *shape)), "running"), jax.random.key(0))
    return Network(randomized(variables, seed), module, MEAN[shape[2]], STD[shape[2]], shape)
