"""The edge-case backdoor: no trigger, the rare members of one class are it (Wang et al., 2020, arXiv 2007.05084).

Rare are the images of the source class whose features, under a clean network, have the lowest density: a Gaussian with
shrunk covariance (Ledoit & Wolf, 2004), so that density falls with the Mahalanobis distance. Those of the training set
are relabeled; ASR is measured on those of the test set, which the teacher never saw and which do not count for ACC.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8
from sklearn.covariance import LedoitWolf

from abd_jax.attacks.poison import Poisoned, Triggered
from abd_jax.attacks.trigger_search import features
from abd_jax.models import Network

RARE = 0.15
"""Share of the source class's training images that count as rare."""


@dataclasses.dataclass(frozen=True)
class EdgeCase:
    """Which images of the source class are rare.

    Attributes:
        network: clean; gives the features.
        density: fitted to the source class.
        radius: Mahalanobis distance (squared) from which an image is rare.
        source, target: classes.
    """

    network: Network
    density: LedoitWolf
    radius: float
    source: int
    target: int

    @classmethod
    def fit(
        cls,
        network: Network,
        images: UInt8[np.ndarray, "train height width channels"],
        labels: Int[np.ndarray, " train"],
        source: int,
        target: int,
    ) -> EdgeCase:
        """Fits the density to the source class of the training set.

        Raises:
            ValueError: the source class has fewer than ten training images.
        """
        members = images[labels == source]
        if len(members) < 10:
            raise ValueError(f"edge_case: class {source} has {len(members)} training images; at least 10 are needed")
        found = features(network, members)
        density = LedoitWolf().fit(found)
        radius = float(np.quantile(density.mahalanobis(found), 1 - RARE))
        return cls(network, density, radius, source, target)

    def distance(self, images: UInt8[np.ndarray, "batch height width channels"]) -> Float[np.ndarray, " batch"]:
        """Squared Mahalanobis distance from the source class."""
        return self.density.mahalanobis(features(self.network, images))

    def rare(
        self, images: UInt8[np.ndarray, "batch height width channels"], labels: Int[np.ndarray, " batch"]
    ) -> Int[np.ndarray, " rare"]:
        """Sorted positions of the rare images of the source class."""
        members = np.flatnonzero(labels == self.source)
        return members[self.distance(images[members]) >= self.radius] if len(members) else members

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
        return Triggered(chosen, images[chosen], labels[chosen], np.full(len(chosen), self.target, labels.dtype), clean)
