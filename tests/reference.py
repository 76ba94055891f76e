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


def _small(variables, images, mean, std):
    v = flat(variables)
    return v, (np.asarray(images, np.float64) - np.asarray(mean)) / np.asarray(std)


def _conv_bn(v, x, conv, bn, stride=1, norm="running", taps=None):
    h, tap = batch_norm(convolve(x, v[f"params/{conv}/kernel"], stride), v, bn, norm)
    if taps is not None:
        taps.append(tap)
    return h


def _classifier(v, embedding):
    return embedding @ v["params/fc/kernel"] + v["params/fc/bias"]


def resnet(variables, depth, images, mean, std, norm="running", imagenet=False):
    """ResNet-18, -34, -50 (He et al., 2016); a bottleneck's stride is in its 3×3."""
    v, x = _small(variables, images, mean, std)
    taps, stages, channels = [], [], 64
    h = np.maximum(_conv_bn(v, x, "conv1", "bn1", 2 if imagenet else 1, norm, taps), 0)
    if imagenet:
        padded = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        height, width = ((side - 1) // 2 + 1 for side in h.shape[1:3])
        views = [padded[:, r::2, c::2][:, :height, :width] for r in range(3) for c in range(3)]
        h = np.max(views, axis=0)
    for stage, count in enumerate({18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]):
        for block in range(count):
            name, stride = f"layer{stage + 1}_{block}", 2 if stage > 0 and block == 0 else 1
            strides = (1, stride, 1) if depth == 50 else (stride, 1)
            a = h
            for index, by in enumerate(strides, start=1):
                a = _conv_bn(v, a, f"{name}/conv{index}", f"{name}/bn{index}", by, norm, taps)
                a = np.maximum(a, 0) if index < len(strides) else a
            out = 64 * 2**stage * (4 if depth == 50 else 1)
            if out != channels or stride > 1:
                h = _conv_bn(v, h, f"{name}/downsample", f"{name}/bn_downsample", stride, norm, taps)
            h, channels = np.maximum(a + h, 0), out
        stages.append(h)
    embedding = h.mean(axis=(1, 2))
    return SimpleNamespace(logits=_classifier(v, embedding), embedding=embedding, stages=stages, taps=taps)


def vgg(variables, depth, images, mean, std, norm="running"):
    """VGG-11 and -16 with batch normalization; a 2×2 maximum behind each group while two pixels are left."""
    v, h = _small(variables, images, mean, std)
    taps, stages = [], []
    for group, count in enumerate({11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}[depth], start=1):
        for layer in range(count):
            h = np.maximum(_conv_bn(v, h, f"conv{group}_{layer}", f"bn{group}_{layer}", 1, norm, taps), 0)
        stages.append(h)
        if min(h.shape[1:3]) > 1:
            h = np.max([h[:, r::2, c::2][:, : h.shape[1] // 2, : h.shape[2] // 2] for r in (0, 1) for c in (0, 1)], 0)
    embedding = h.mean(axis=(1, 2))
    return SimpleNamespace(logits=_classifier(v, embedding), embedding=embedding, stages=stages, taps=taps)


def mobilenet(variables, images, mean, std, norm="running", imagenet=False):
    """MobileNetV2 (Sandler et al., 2018)."""
    v, x = _small(variables, images, mean, std)
    relu6 = lambda x: np.clip(x, 0, 6)  # noqa: E731
    taps, stages, number, channels = [], [], 0, 32
    h = relu6(_conv_bn(v, x, "conv_stem", "bn_stem", 2 if imagenet else 1, norm, taps))
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expansion, features, count, first) in enumerate(table):
        for block in range(count):
            number, stride = number + 1, first if block == 0 and (imagenet or stage != 1) else 1
            if stride == 2:
                stages.append(h)
            name, a = f"features_{number}", h
            if expansion > 1:
                a = relu6(_conv_bn(v, a, f"{name}/expand", f"{name}/expand_bn", 1, norm, taps))
            kernel = v[f"params/{name}/depthwise/kernel"][:, :, 0]
            each = [convolve(a[..., c : c + 1], kernel[:, :, None, c : c + 1], stride) for c in range(a.shape[-1])]
            a, tap = batch_norm(np.concatenate(each, -1), v, f"{name}/depthwise_bn", norm)
            taps.append(tap)
            a = _conv_bn(v, relu6(a), f"{name}/project", f"{name}/project_bn", 1, norm, taps)
            h, channels = a + h if stride == 1 and channels == features else a, features
    stages.append(h)
    embedding = relu6(_conv_bn(v, h, "conv_head", "bn_head", 1, norm, taps)).mean(axis=(1, 2))
    return SimpleNamespace(logits=_classifier(v, embedding), embedding=embedding, stages=stages, taps=taps)


def vit(variables, depth, heads, patch, images, mean, std):
    """Vision transformer (Dosovitskiy et al., 2021), one image, one head and one token after the other."""
    from math import erf

    v, x = _small(variables, images, mean, std)

    def norm(x, path):
        centered = x - x.mean(-1, keepdims=True)
        scaled = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-6)
        return scaled * v[f"params/{path}/scale"] + v[f"params/{path}/bias"]

    def linear(x, path):
        return x @ v[f"params/{path}/kernel"][0, 0] + v[f"params/{path}/bias"]

    gelu = np.vectorize(lambda x: x * (1 + erf(x / 2**0.5)) / 2)
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    results = SimpleNamespace(logits=[], embedding=[], stages=[[], [], []])
    for image in x:
        tokens = [v["params/tokens/cls_token"][0, 0]]
        for row in range(rows):
            for column in range(columns):
                cut = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                kernel = v["params/patch_embed/kernel"]
                tokens.append(np.tensordot(cut, kernel, axes=3) + v["params/patch_embed/bias"])
        h = np.stack(tokens) + v["params/tokens/pos_embed"][0]
        for index in range(depth):
            name = f"blocks_{index}"
            q, k, values = np.split(linear(norm(h, f"{name}/norm1"), f"{name}/qkv"), 3, axis=-1)
            out = []
            for a, b, c in zip(*(np.split(part, heads, axis=-1) for part in (q, k, values)), strict=True):
                out.append(softmax(a @ b.T / np.sqrt(a.shape[-1])) @ c)
            h = h + linear(np.concatenate(out, -1), f"{name}/proj")
            h = h + linear(gelu(linear(norm(h, f"{name}/norm2"), f"{name}/fc1")), f"{name}/fc2")
            if (index + 1) % (depth // 3) == 0:
                results.stages[(index + 1) // (depth // 3) - 1].append(h[1:].reshape(rows, columns, -1))
        results.embedding.append(norm(h[0], "norm"))
        results.logits.append(_classifier(v, results.embedding[-1]))
    stages = [np.stack(stage) for stage in results.stages]
    return SimpleNamespace(
        logits=np.stack(results.logits), embedding=np.stack(results.embedding), stages=stages, taps=[]
    )
