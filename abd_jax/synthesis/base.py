"""What every data-free method has in common: three pure functions, bound to settings and to a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from abd_jax import settings
from abd_jax.losses import Moments
from abd_jax.models import Forward, Generator, Network, Norm
from abd_jax.screening import Screen

Classifier = Callable[[Array], Forward]
"""A network, or one behind whatever a defense puts in front of it."""
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class SynthesisConfig:
    """Settings of a method; each has its own subclass, which says which method it is.

    Attributes:
        updates: updates per cycle.
    """

    updates: int = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """What a synthesizer is bound to besides its settings.

    Attributes:
        image_shape: (height, width, channels).
        mean, std: normalization of the teacher.
        num_classes: size of the logits.
        batch: images per student batch.
        cycles: rounds of the whole run, for schedules.
        channels: of each of the teacher's batch normalizations, in forward order.
        classes: class names in label order, for methods that read them; may be empty.
        dtype: compute dtype of generators.
        sharding: of a batch over a mesh's devices; None on one device.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    batch: int
    cycles: int
    channels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    dtype: str = "float32"
    sharding: jax.sharding.NamedSharding | None = None

    @classmethod
    def of(cls, teacher: Network, **options: Any) -> Task:
        """The task that a teacher sets: its shapes and normalization, with the other fields as options."""
        stats = flatten_dict(teacher.variables.get("batch_stats", {}), sep="/")
        return cls(
            image_shape=teacher.input_shape,
            mean=teacher.mean,
            std=teacher.std,
            num_classes=teacher.module.num_classes,
            channels=tuple(stats[f"{name}/mean"].shape[0] for name in teacher.module.batch_norms),
            **options,
        )

    def generator(self, features: int, output: Literal["standardized", "sigmoid"] = "standardized") -> Generator:
        """The generator of images for this teacher."""
        return Generator(self.image_shape, self.mean, self.std, features, jnp.dtype(self.dtype), output)

    def shard(self, batch: Array) -> Array:
        """Spreads an array whose first axis is the batch's over the mesh, if there is one."""
        return batch if self.sharding is None else jax.lax.with_sharding_constraint(batch, self.sharding)

    def replicate(self, state: Any) -> Any:
        """A copy of every array on every device of the mesh, if there is one.

        Left to XLA, a state comes out spread as the batch that it was computed from, and no compiled update takes it.
        """
        if self.sharding is None:
            return state
        everywhere = jax.sharding.NamedSharding(self.sharding.mesh, jax.sharding.PartitionSpec())
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere), state)

    def require(self, method: str, *, quarters: bool = False, batch_norm: float | Literal["always"] = 0.0) -> None:
        """Raises ValueError if the method cannot do this task.

        Args:
            method: its name.
            quarters: whether its generator upsamples twice.
            batch_norm: whether it reads the teacher's batch normalizations: always, or by its `config.batch_norm`.
        """
        height, width, _ = self.image_shape
        if quarters and (height % 4 or width % 4):
            raise ValueError(f"image size {height}×{width}: the generator of {method} needs sides divisible by 4")
        if batch_norm and not self.channels:
            weight = "" if batch_norm == "always" else "say --synthesis.batch-norm 0, or "
            raise ValueError(
                f"method {method} reads the teacher's batch normalization, and this teacher has none; "
                f"{weight}take {'ood' if method == 'dfad' else 'ood or dfad'}"
            )


@runtime_checkable
class Synthesizer(Protocol):
    """A data-free method. Hashable, so it can be static under `jit`; its state is one pytree.

    Attributes:
        config: the method's settings.
        task: see `Task`.
        fresh: whether every student update has a batch of its own, else a cycle's updates share one.
        student_norm: whose statistics the student that `update` gets normalizes by, as the method was published.
    """

    @property
    def config(self) -> SynthesisConfig: ...

    @property
    def task(self) -> Task: ...

    @property
    def fresh(self) -> bool: ...

    @property
    def student_norm(self) -> Norm: ...

    def init(self, key: PRNGKeyArray) -> Any:
        """The state before the first update."""
        ...

    def update(
        self, key: PRNGKeyArray, state: Any, teacher: Classifier, student: Classifier, screen: Screen
    ) -> tuple[Any, Metrics]:
        """One step of synthesis: `config.updates` of them make a cycle.

        The same function for every step, first and last of a batch's optimization included, so that whoever calls it
        is free to scan it or to dispatch it step by step.
        """
        ...

    def sample(self, key: PRNGKeyArray, state: Any, count: int) -> Float[Array, "count height width channels"]:
        """`count` images in the units of [0, 1] for the student."""
        ...


def check(config: Any, **bounds: tuple[str, ...]) -> None:
    """`settings.check` of a method's settings, whose bank must hold a batch."""
    settings.check("synthesis", config, **bounds)
    bank = getattr(config, "bank", None)
    if bank is not None and bank.capacity < config.batch:
        raise ValueError(
            f"synthesis.bank.capacity {bank.capacity}: allowed are whole numbers from the batch's {config.batch}"
        )


def apply(module: nn.Module, params: PyTree, inputs: Array) -> Array:
    """A module's output with the given parameters."""
    outputs: Array = module.apply({"params": params}, inputs)  # type: ignore[assignment]
    return outputs


def batch_moments(forward: Forward) -> tuple[Moments, ...]:
    """Mean and variance of what entered each batch normalization."""
    return tuple((tap.mean, tap.variance) for tap in forward.batch_norm)


def running_moments(forward: Forward) -> tuple[Moments, ...]:
    """Stored mean and variance of each batch normalization that has them."""
    return tuple(
        (tap.running_mean, tap.running_variance)
        for tap in forward.batch_norm
        if tap.running_mean is not None and tap.running_variance is not None
    )


def no_moments(channels: tuple[int, ...]) -> tuple[Moments, ...]:
    """Zeros in the shapes of a network's moments."""
    return tuple((jnp.zeros(count), jnp.zeros(count)) for count in channels)


def confidence(logits: Float[Array, "batch classes"]) -> Float[Array, ""]:
    """Mean of the largest softmax."""
    return jnp.max(jax.nn.softmax(logits), axis=-1).mean()


def screened(metrics: Metrics, screening: Any) -> Metrics:
    """Metrics with those of a screening, all under `generator/`."""
    named = {**metrics, "penalty": screening.penalty, **screening.metrics}
    return {f"generator/{name}": value for name, value in named.items()}
