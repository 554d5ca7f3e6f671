"""Six clusters in the plane, after the toy of Kong & Chaudhuri (2021); one of them of exactly K points."""

import numpy as np

K = 10
SIZES = (60, 60, 40, 40, 30, K)
SPREADS = (0.6, 0.3, 0.5, 0.2, 0.7, 0.4)
CENTRES = np.array([[0, 0], [6, 1], [1, 7], [7, 7], [-6, 4], [-5, -5]], float)


def six_clusters(seed=0):
    """Points (240, 2) and the cluster of each, the cluster of K points last."""
    random = np.random.default_rng(seed)
    parts = [
        centre + spread * random.standard_normal((size, 2))
        for centre, spread, size in zip(CENTRES, SPREADS, SIZES, strict=True)
    ]
    return np.concatenate(parts), np.repeat(np.arange(6), SIZES)
