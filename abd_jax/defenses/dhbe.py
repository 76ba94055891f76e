"""DHBE's regularizer (Yan et al., AsiaCCS 2023): a generator of small patches plays against the student.

Beside its distillation loss the student minimizes `weight · E |S(x + p) − S(x)|₁` (the mean over images and classes;
S(x) is not differentiated), and the patch generator, p = G_p(z) put at a random place of each image, maximizes it. The
published method has the L1 loss for distillation too: `--student.loss l1`. Its patch generator is ours: a perceptron
with one hidden layer and tanh, so that a patch adds at most 1 to a pixel.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax.defenses.base import Metrics, Rival
from abd_jax.models import Network, Norm
from abd_jax.settings import check


class PatchGenerator(nn.Module):
    """Latent vector → patch in [−1, 1], in units of pixels."""

    size: int
    channels: int
    features: int

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"]) -> Float[Array, "batch size size channels"]:
        h = nn.relu(nn.Dense(self.features)(latent))
        patch = jnp.tanh(nn.Dense(self.size**2 * self.channels)(h))
        return patch.reshape(-1, self.size, self.size, self.channels)


@struct.dataclass
class Patches:
    """The patch generator and its optimizer."""

    params: PyTree
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class DHBE(Rival):
    """Settings.

    Attributes:
        weight: of the regularizer; published: 0.1.
        size: of a patch, in pixels.
        learning_rate: of the patch generator's Adam; published: 1e-3.
        latent: dimension of the patch generator's noise.
        features: its channels.
    """

    weight: float = 0.1
    size: int = 5
    learning_rate: float = 1e-3
    latent: int = 64
    features: int = 128

    def __post_init__(self) -> None:
        check("rivals.dhbe", self, positive=("weight", "size", "learning_rate", "latent", "features"))

    def generator(self, channels: int) -> PatchGenerator:
        return PatchGenerator(self.size, channels, self.features)

    def init(self, key: PRNGKeyArray, image_shape: tuple[int, int, int]) -> Patches:
        height, width, channels = image_shape
        if self.size > min(height, width):
            raise ValueError(f"rivals.dhbe.size {self.size}: allowed is 1 … {min(height, width)}, the images' side")
        params = jax.jit(self.generator(channels).init)(key, jnp.zeros((1, self.latent)))["params"]
        return Patches(params, optax.adam(self.learning_rate).init(params))

    def patched(self, key: PRNGKeyArray, params: PyTree, images: Array) -> Array:
        """Each image with a patch of its own, added at a place of its own."""
        noise, place = jax.random.split(key)
        batch, height, width, channels = images.shape
        latent = jax.random.normal(noise, (batch, self.latent))
        patches: Array = self.generator(channels).apply({"params": params}, latent)  # type: ignore[assignment]
        limits = jnp.asarray([height - self.size + 1, width - self.size + 1])
        return jax.vmap(add_patch)(images, patches, jax.random.randint(place, (batch, 2), 0, limits))

    def regularize(
        self, key: PRNGKeyArray, state: Patches, student: Network, images: Array, norm: Norm
    ) -> tuple[Patches, PyTree, Metrics]:
        clean = jax.lax.stop_gradient(student(images, norm).logits)

        def distance(params, patch_params):
            moved = student.with_params(params)(self.patched(key, patch_params, images), norm).logits
            return jnp.abs(moved - clean).mean()

        value, (by_student, by_patches) = jax.value_and_grad(distance, argnums=(0, 1))(student.params, state.params)
        ascent = jax.tree.map(jnp.negative, by_patches)
        updates, optimizer = optax.adam(self.learning_rate).update(ascent, state.optimizer)
        extra = jax.tree.map(lambda g: self.weight * g, by_student)
        return Patches(optax.apply_updates(state.params, updates), optimizer), extra, {"dhbe/distance": value}


def add_patch(
    image: Float[Array, "height width channels"], patch: Float[Array, "size size channels"], corner: Array
) -> Float[Array, "height width channels"]:
    """The image plus the patch with its first pixel at `corner`, (row, column)."""
    start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
    return image + jax.lax.dynamic_update_slice(jnp.zeros_like(image), patch, start)
