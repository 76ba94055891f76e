"""Self-Retrospection by pasting (ours, `perturb="inverted"`): neither δ nor hypergradient.

Triggers, one inverted from the teacher and one hunted in the student, are pasted on a part of each batch, and the
distillation loss there unlearns them.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from abd_jax.defenses import trigger_inversion
from abd_jax.defenses.self_retrospection import RetrospectionConfig
from abd_jax.defenses.trigger_inversion import Backdoor, InversionConfig, Trigger
from abd_jax.models import Network


def paste_some(
    config: RetrospectionConfig,
    key: PRNGKeyArray,
    backdoor: Backdoor,
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """The batch with a trigger on a `portion` of its images, each time without `drop` of the trigger's pixels.

    It is the teacher's; with `hunt` it is on every second of those images what was found in the student.
    """
    choice, dropout, second = jax.random.split(key, 3)
    batch = images.shape[0]
    order = jax.random.permutation(choice, batch)[:, None, None, None]
    count = jnp.where(backdoor.target >= 0, config.perturbed(batch), 0)

    def pasted(key: PRNGKeyArray, trigger: Trigger) -> Array:
        return trigger_inversion.paste(trigger_inversion.thin(key, trigger, batch, config.drop), images)

    result = jnp.where(order < count, pasted(dropout, backdoor.trigger), images)
    if config.hunt:
        hunted = jax.tree.map(jax.nn.sigmoid, backdoor.hunt.logits)
        result = jnp.where(order < count // 2, pasted(second, hunted), result)
    return result


def hunt(
    config: RetrospectionConfig,
    inversion: InversionConfig,
    key: PRNGKeyArray,
    step: Int[Array, ""],
    backdoor: Backdoor,
    student: Network,
    images: Float[Array, "batch height width channels"],
) -> Backdoor:
    """One step, the `step`-th of the run, towards a trigger that leads the student to the suspected class."""
    afresh = step % (config.hunt * config.restart) == 0
    begun = trigger_inversion.begin(inversion, student.input_shape)
    search = jax.tree.map(functools.partial(jnp.where, afresh), begun, backdoor.hunt)
    images = images[: min(inversion.images, config.seen(images.shape[0]))]
    search = trigger_inversion.advance(inversion, search, student, images, backdoor.target, key)
    return dataclasses.replace(backdoor, hunt=search)
