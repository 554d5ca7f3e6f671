"""Ask classical density estimators which training samples make a test sample likely.

On six clusters in the plane, as in Kong & Chaudhuri (2021): the influence IF(x_i, z) of every training sample on a
test sample z, and on itself, under the k-nearest-neighbour density, the kernel density and a Gaussian mixture.
Run it with ``python examples/05_density_influence.py``; it prints what stands out and draws three pictures.
"""

import json
from pathlib import Path

import numpy as np
from data import add_load, parser_of
from matplotlib.figure import Figure
from saved import there
from scipy.stats import spearmanr
from sklearn.mixture import GaussianMixture

from gradindex.influence import GMMInfluence, KDEInfluence, KNNInfluence
from gradindex.influence.density import DensityInfluence
from gradindex.influence.plots import plot_influence

K = 20
SIZES, SPREADS = (150, 150, 100, 100, 60, K), (0.7, 0.4, 0.6, 0.25, 0.8, 0.5)
FITTED = ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_")
CENTRES = np.array([[0.0, 0.0], [6, 1], [1, 7], [7, 7], [-6, 4], [-5, -5]])


def clusters(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points in the plane (n, 2) and their clusters (n,); the last cluster has exactly K points."""
    random = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(len(SIZES)), SIZES)
    noise = random.standard_normal((len(cluster), 2))
    return CENTRES[cluster] + noise * np.array(SPREADS)[cluster, None], cluster


def mixture_of(x: np.ndarray, file: Path, load: bool) -> GaussianMixture:
    """Fit a mixture and leave its parameters in a file, or take them from there."""
    mixture = GaussianMixture(6, means_init=CENTRES, tol=1e-9, max_iter=500)
    if load:
        with np.load(there(file), allow_pickle=False) as fitted:
            for name in FITTED:
                setattr(mixture, name, fitted[name])
    else:
        mixture.fit(x)
        np.savez(file, **{name: getattr(mixture, name) for name in FITTED})
    return mixture


def draw(x: np.ndarray, values: dict[str, np.ndarray], z: np.ndarray | None, zoom: np.ndarray | None) -> Figure:
    """Draw a panel for each estimator; with `zoom` a second row, the cluster it marks alone."""
    figure = Figure(figsize=(12, 3.4 if zoom is None else 6.6), layout="constrained")
    rows = [np.full(len(x), True)] if zoom is None else [np.full(len(x), True), zoom]
    panels = figure.subplots(len(rows), len(values), squeeze=False)
    for line, some in zip(panels, rows, strict=True):
        for axes, (name, value) in zip(line, values.items(), strict=True):
            plot_influence(x[some], value[some], z, title=name if some.all() else f"{name}, z's cluster", axes=axes)
    return figure


def densities(x: np.ndarray, estimators: dict[str, DensityInfluence]) -> Figure:
    """Draw the logarithm of each estimated density over the plane, with the training samples."""
    low, high = x.min(axis=0) - 1, x.max(axis=0) + 1
    axis = [np.linspace(low[i], high[i], 120) for i in (0, 1)]
    plane = np.stack(np.meshgrid(*axis), axis=-1)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (name, estimator) in zip(figure.subplots(1, len(estimators)), estimators.items(), strict=True):
        logarithm = -estimator.loss(plane.reshape(-1, 2)).reshape(plane.shape[:2])
        levels = np.linspace(max(logarithm.max() - 12, logarithm.min()), logarithm.max(), 13)
        axes.contourf(*axis, logarithm, levels, cmap="Blues", extend="min")
        axes.scatter(*x.T, s=2, color="black", alpha=0.4)
        axes.set_title(f"{name}: log density", fontsize=10)
        axes.set_axis_off()
    return figure


def distances(
    x: np.ndarray, cluster: np.ndarray, z: np.ndarray, proponents: np.ndarray, opponents: np.ndarray, own: np.ndarray
) -> dict[str, float]:
    """Return how far proponents and opponents of z are, and whether self-influence is high far from a cluster's mean.

    Distances to z are of the mean distance of the samples in its cluster, the first one.
    """
    to_z = np.linalg.norm(x - z, axis=1)
    every = to_z[cluster == 0].mean()
    means = np.array([x[cluster == one].mean(axis=0) for one in range(len(SIZES))])
    spread = np.array(SPREADS)[cluster]
    from_mean = np.linalg.norm(x - means[cluster], axis=1) / spread
    return {
        "distance of proponents": float(to_z[proponents].mean() / every),
        "distance of opponents": float(to_z[opponents].mean() / every),
        "self-influence and distance to the mean": float(spearmanr(own, from_mean).statistic),
    }


def main() -> None:
    parser = parser_of(__doc__, "runs/density-influence", "accepted for the sake of the others; this is quick")
    add_load(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    x, cluster = clusters(options.seed)
    print(f"data: {len(x)} points in the plane, {len(SIZES)} clusters of {', '.join(map(str, SIZES))}")
    z = CENTRES[0] + 0.6
    mixture = mixture_of(x, options.out / "mixture.npz", options.load)
    estimators = {
        f"{K} nearest neighbours": KNNInfluence(x, K),
        "kernel density": KDEInfluence(x, 0.5),
        "Gaussian mixture": GMMInfluence(x, mixture),
    }
    on_z = {name: estimator.influence(z[None])[:, 0] for name, estimator in estimators.items()}
    on_self = {name: estimator.self_influence() for name, estimator in estimators.items()}

    unrelated = np.log1p(-1 / len(x))  # what any sample takes from the density elsewhere by being counted
    nearest = np.argsort(np.linalg.norm(x - z, axis=1))
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':24}{'proponents that are':22}{'opponents in the':20}highest self-influence")
    print(f"{'':24}{f'the {K} nearest':22}{'cluster of z':20}in cluster of {K}")
    for name, estimator in estimators.items():
        (_, proponents), (_, opponents) = estimator.top(z[None], K)
        near = len(set(proponents[0]) & set(nearest[:K]))
        own = int((on_z[name][cluster == 0] < 2 * unrelated).sum())
        lonely = int((cluster[np.argsort(-on_self[name])[:K]] == 5).sum())
        print(f"{name:24}{f'{near} of {K}':22}{f'{own} of {SIZES[0]}':20}{lonely} of {K}")
        figures[name] = {"proponents among the nearest": near, "opponents in the cluster": own}
        figures[name] |= distances(x, cluster, z, proponents[0], opponents[0], on_self[name])
    print("distance to z of the strongest proponents and opponents, of the mean distance of z's cluster:")
    for name, found in figures.items():
        print(f"  {name:22}{found['distance of proponents']:6.2f}{found['distance of opponents']:6.2f}")

    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    densities(x, estimators).savefig(options.out / "density.png", dpi=100)
    draw(x, on_z, z, cluster == 0).savefig(options.out / "influence.png", dpi=100)
    draw(x, on_self, None, None).savefig(options.out / "self-influence.png", dpi=100)
    print(f"wrote density.png, influence.png and self-influence.png into {options.out}")


if __name__ == "__main__":
    main()
