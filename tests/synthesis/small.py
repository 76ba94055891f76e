"""Tiny teachers, students and tasks, and the tiny network's forward pass in NumPy."""

import functools
from types import SimpleNamespace

import jax
import numpy as np

from abd_jax.screening import accept_all
from abd_jax.synthesis import Task
from abd_jax.synthesis.bank import BankConfig
from tests import networks, reference

SHAPE, CLASSES, BATCH = (8, 8, 1), 3, 6
MEAN, STD = networks.MEAN[1], networks.STD[1]
BANK = BankConfig(capacity=4 * BATCH, crop=0, flip=False)


@functools.cache
def networks_at_odds():
    """A teacher and a student with logits far apart."""

    def sensitive(seed):
        network = networks.tiny(seed, SHAPE)
        params = dict(network.params)
        params["fc"] = {"kernel": 6 * params["fc"]["kernel"], "bias": params["fc"]["bias"]}
        return network.with_params(params)

    with jax.ensure_compile_time_eval():  # may be first asked for under jit
        return sensitive(0), sensitive(1)


@functools.cache
def task(**options):
    return Task.of(networks_at_odds()[0], **({"batch": BATCH, "cycles": 20, "classes": ("0", "1", "2")} | options))


@functools.cache
def updater(own, screen):
    """One compiled update; the student normalizes as the method was published."""
    return jax.jit(
        lambda key, state, teacher, student: own.update(
            key, state, teacher, lambda images: student(images, own.student_norm), screen
        )
    )


def update(own, state, seed, screen=accept_all):
    return updater(own, screen)(jax.random.key(seed), state, *networks_at_odds())


def run(own, state, updates, first=100, screen=accept_all):
    """Several updates; the last state, and all metrics."""
    history = []
    for step in range(updates):
        state, metrics = update(own, state, first + step, screen)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def forward(network, images, norm="running"):
    """`networks.Tiny` by hand: logits, embedding, moments and means of what enters its batch normalization."""
    v = reference.flat(network.variables)
    x = (np.asarray(images, np.float64) - np.array(network.mean)) / np.array(network.std)
    h, seen = reference.batch_norm(reference.convolve(x, v["params/conv/kernel"]), v, "bn", norm)
    embedding = np.log1p(np.exp(h)).mean(axis=(1, 2))
    logits = embedding @ v["params/fc/kernel"] + v["params/fc/bias"]
    return SimpleNamespace(logits=logits, embedding=embedding, **vars(seen))


def stored(network):
    v = reference.flat(network.variables)
    return v["batch_stats/bn/mean"], v["batch_stats/bn/var"]


def distance(mean, variance, network):
    """The batch normalization distance of the tiny network's one layer."""
    own = stored(network)
    return np.linalg.norm(mean - own[0]) + np.linalg.norm(variance - own[1])


def cross_entropy(logits, labels):
    return -reference.log_softmax(logits)[np.arange(len(labels)), labels]


def agreed(teacher_logits, student_logits):
    agree = teacher_logits.argmax(-1) == student_logits.argmax(-1)
    return agree * reference.kl(teacher_logits, student_logits)


def inversion(config, images, labels, *, moments=None, opposed=1.0):
    """`inversion_loss` without a screen."""
    teacher, student = networks_at_odds()
    seen = forward(teacher, images)
    mean, variance = moments or (seen.mean, seen.variance)
    value = config.batch_norm * distance(mean, variance, teacher)
    value += config.one_hot * cross_entropy(seen.logits, labels).mean()
    return value - config.adversarial * opposed * agreed(seen.logits, forward(student, images).logits).mean()
