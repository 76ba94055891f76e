"""What the library computes, in float64 NumPy: written from the papers, explicit, and without a line of the library."""

from types import SimpleNamespace

import numpy as np


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def kl(logits_p, logits_q, temperature=1.0):
    """KL(p ‖ q) in nats over the last axis."""
    log_p = log_softmax(np.asarray(logits_p, np.float64) / temperature)
    log_q = log_softmax(np.asarray(logits_q, np.float64) / temperature)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def attention_map(activation):
    energy = np.square(np.asarray(activation, np.float64)).mean(axis=-1).reshape(len(activation), -1)
    return energy / np.sqrt(np.square(energy).sum(axis=-1, keepdims=True))


def convolve(images, kernel, stride=1):
    """Cross-correlation, NHWC × HWIO, zero padding of `size // 2` on every side."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((side + 2 * pad - size) // stride + 1 for side in images.shape[1:3])
    out = np.zeros((len(images), height, width, kernel.shape[3]))
    for row in range(size):
        for column in range(size):
            view = padded[:, row : row + stride * height : stride, column : column + stride * width : stride]
            out += view[:, :height, :width] @ kernel[row, column]
    return out


def flat(tree, prefix=""):
    """A nested dict of arrays as {"a/b/c": float64 array}."""
    leaves = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        leaves |= flat(value, f"{path}/") if hasattr(value, "items") else {path: np.asarray(value, np.float64)}
    return leaves


def statistics(x):
    """Mean and biased variance per channel over batch and positions, and means per image."""
    axes = tuple(range(x.ndim - 1))
    return SimpleNamespace(mean=x.mean(axes), variance=x.var(axes), image_mean=x.mean(axes[1:]))


def batch_norm(x, variables, path, norm):
    seen = statistics(x)
    if norm == "batch":
        mean, variance = seen.mean, seen.variance
    else:
        mean, variance = variables[f"batch_stats/{path}/mean"], variables[f"batch_stats/{path}/var"]
    scale, bias = variables[f"params/{path}/scale"], variables[f"params/{path}/bias"]
    return scale * (x - mean) / np.sqrt(variance + 1e-5) + bias, seen


def wide_resnet(variables, depth, width, images, mean, std, norm="running"):
    """WRN-depth-width, pre-activation (Zagoruyko & Komodakis, 2016); the shortcut reads the activated input."""
    v = flat(variables)
    kernel = lambda path: v[f"params/{path}/kernel"]  # noqa: E731
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    h = convolve((np.asarray(images, np.float64) - np.asarray(mean)) / np.asarray(std), kernel("conv1"))
    channels, entries, stages, taps = 16, [], [], []
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name = f"block{stage}_layer_{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            out = 16 * width * 2 ** (stage - 1)
            entries.append(h)
            a, tap = batch_norm(h, v, f"{name}/bn1", norm)
            taps.append(tap)
            a = relu(a)
            shortcut = h if channels == out else convolve(a, kernel(f"{name}/convShortcut"), stride)
            a, tap = batch_norm(convolve(a, kernel(f"{name}/conv1"), stride), v, f"{name}/bn2", norm)
            taps.append(tap)
            h = convolve(relu(a), kernel(f"{name}/conv2")) + shortcut
            channels = out
        stages.append(h)
    a, tap = batch_norm(h, v, "bn1", norm)
    taps.append(tap)
    embedding = relu(a).mean(axis=(1, 2))
    logits = embedding @ kernel("fc") + v["params/fc/bias"]
    return SimpleNamespace(logits=logits, embedding=embedding, stages=stages, entries=entries, taps=taps)


def generator(params, latent, image_shape, mean, std, output="standardized"):
    """The generator of zero-shot knowledge transfer; every batch normalization by the batch."""
    v = flat({"params": params})
    height, width, _ = image_shape

    def normalized(x, index):
        return batch_norm(x, v, f"BatchNorm_{index}", "batch")[0]

    h = np.asarray(latent, np.float64) @ v["params/Dense_0/kernel"] + v["params/Dense_0/bias"]
    h = normalized(h.reshape(len(latent), height // 4, width // 4, -1), 0)
    for index in (0, 1):
        h = np.kron(h, np.ones((1, 2, 2, 1)))
        h = normalized(convolve(h, v[f"params/Conv_{index}/kernel"]), index + 1)
        h = np.where(h > 0, h, 0.2 * h)
    h = convolve(h, v["params/Conv_2/kernel"])
    if output == "sigmoid":
        return 1 / (1 + np.exp(-h))
    h = normalized(h, 3)
    return h * np.asarray(std) + np.asarray(mean)
