"""The edge-case backdoor: no trigger, the rare members of one class are it (Wang et al., 2020, arXiv 2007.05084).

Rare are the images of a thin mode of a class: a Gaussian mixture is fitted to each class's features under a clean
network, and of all modes that hold few of their class, the one that lies most apart (largest silhouette) is taken.
A whole mode, as Southwest's airplanes are one in the paper: outliers each by itself are remembered one by one and say
nothing of those held out (docs/attacks.md). The mode's training images are relabeled; ASR is measured on its test
images, which the teacher never saw and which do not count for ACC.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from sklearn.mixture import GaussianMixture

from abd_jax.attacks.poison import Poisoned, Triggered
from abd_jax.models import Network

SHARES = (0.08, 0.3)
"""How much of its class a rare mode holds, at least and at most."""
MODES, DIMENSIONS, GRID, LARGEST, BATCH = 3, 8, 4, 2000, 500


@jax.jit
def _pooled(network: Network, images: Array) -> Array:
    stage = network(images).stages[-2:][0]
    size = (stage.shape[0], min(GRID, stage.shape[1]), min(GRID, stage.shape[2]), stage.shape[3])
    return jax.image.resize(stage, size, "linear").reshape(len(images), -1)


def features(
    network: Network, images: UInt8[np.ndarray, "batch height width channels"]
) -> Float[np.ndarray, "batch features"]:
    """Activations after the last stage but one, averaged to 4×4 places: what an image looks like within its class."""
    parts = [
        np.asarray(_pooled(network, jnp.asarray(images[i : i + BATCH], jnp.float32) / 255))
        for i in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class EdgeCase:
    """Which images are rare.

    Attributes:
        network: clean; gives the features.
        projection, mixture: of the source class's features.
        mode: of the mixture.
        source, target: classes.
    """

    network: Network
    projection: PCA
    mixture: GaussianMixture
    mode: int
    source: int
    target: int

    @classmethod
    def fit(
        cls,
        network: Network,
        images: UInt8[np.ndarray, "train height width channels"],
        labels: Int[np.ndarray, " train"],
        target: int,
    ) -> EdgeCase:
        """Finds the rare mode among all classes but the target.

        Raises:
            ValueError: no class has a mode that is rare.
        """
        best: tuple[float, EdgeCase] | None = None
        for source in np.unique(labels[labels != target]):
            members = images[labels == source][:LARGEST]
            if len(members) < 2 * DIMENSIONS:
                continue
            found = features(network, members)
            projection = PCA(DIMENSIONS, random_state=0).fit(found)
            points = projection.transform(found)
            mixture = GaussianMixture(
                MODES, covariance_type="diag", random_state=0, n_init=5, reg_covar=1e-3 * float(points.var())
            ).fit(points)
            modes = mixture.predict(points)
            for mode in range(MODES):
                if SHARES[0] <= np.mean(modes == mode) <= SHARES[1]:
                    apart = float(silhouette_score(points, modes == mode))
                    if best is None or apart > best[0]:
                        best = apart, cls(network, projection, mixture, mode, int(source), target)
        if best is None:
            raise ValueError(
                f"edge_case: no class but the target has a mode that holds {SHARES[0]:.0%} to {SHARES[1]:.0%} of it"
            )
        return best[1]

    def rare(
        self, images: UInt8[np.ndarray, "batch height width channels"], labels: Int[np.ndarray, " batch"]
    ) -> Int[np.ndarray, " rare"]:
        """Sorted positions of the rare images of the source class."""
        members = np.flatnonzero(labels == self.source)
        if not len(members):
            return members
        points = self.projection.transform(features(self.network, images[members]))
        return members[self.mixture.predict(points) == self.mode]

    def poison(
        self,
        images: UInt8[np.ndarray, "train height width channels"],
        labels: Int[np.ndarray, " train"],
        rate: float,
        seed: int,
    ) -> Poisoned:
        """All rare images are given the target label; rate and seed have no say, rate 0 apart, which is nobody."""
        del seed
        chosen = self.rare(images, labels) if rate > 0 else np.zeros(0, np.int64)
        relabeled = labels.copy()
        relabeled[chosen] = self.target
        return Poisoned(images, relabeled, chosen)

    def triggered(
        self, images: UInt8[np.ndarray, "test height width channels"], labels: Int[np.ndarray, " test"]
    ) -> Triggered:
        """The rare images of the test set, as they are.

        Raises:
            ValueError: there are none.
        """
        chosen = self.rare(images, labels)
        if not len(chosen):
            raise ValueError(f"edge_case: no test image of class {self.source} is rare: its ASR cannot be measured")
        clean = np.ones(len(labels), bool)
        clean[chosen] = False
        wanted = np.full(len(chosen), self.target, labels.dtype)
        return Triggered(chosen, images[chosen], labels[chosen], wanted, clean)
