"""Find the training images that a PyTorch network takes a test image to be like.

A small convolutional network is trained on images; then 1,000 random training images are ranked by the cosine
between their loss gradients and that of each of five random test images (Charpiat et al. 2019). Run it with
``python examples/01_mnist_study_torch.py``; it prints a table and draws two pictures.
"""

import time

import numpy as np
import torch
from data import Images, arguments, load, print_data, print_neighbours
from saved import trained
from torch import nn

from gradindex import GradientSimilarity
from gradindex.plots import plot_distributions, plot_similar


def make_network(size: int) -> nn.Sequential:
    """Return the network for images (1, size, size); its output is logits (10,)."""

    def same() -> nn.Module:  # keeps the size of the image under a 2×2 convolution
        return nn.ZeroPad2d((0, 1, 0, 1))

    return nn.Sequential(
        *(same(), nn.Conv2d(1, 64, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(same(), nn.Conv2d(64, 32, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, 256), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(256, 10),
    )


def train(network: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int, batch_size: int) -> None:
    """Minimise the cross-entropy with Adam; leave the network in inference mode."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    network.eval()


def predict(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    """Return the predicted classes (n,)."""
    with torch.no_grad():
        return torch.cat([network(block).argmax(1) for block in x.split(500)]).numpy()


def as_tensors(data: Images) -> tuple[torch.Tensor, ...]:
    """Return training and test images (n, 1, h, w) with their labels (n,)."""
    parts = (data.x_train[:, None], data.y_train, data.x_test[:, None], data.y_test)
    return tuple(map(torch.as_tensor, parts))


def main() -> None:
    options = arguments(__doc__, out="runs/mnist-study-torch", load=True)
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # the same result on every machine, and not slower beside other programs
    data = load(options.data, train=8_000)
    print_data(data)
    x_train, y_train, x_test, y_test = as_tensors(data)

    network = make_network(x_train.shape[-1])
    start = time.perf_counter()
    small = options.data == "digits"
    epochs = (20 if small else 6) // (2 if options.quick else 1)
    batch_size = 32 if small else 64
    trained(
        options.out / "model.pt", options.load, network, lambda: train(network, x_train, y_train, epochs, batch_size)
    )
    accuracy, how = np.mean(predict(network, x_test) == data.y_test), "loaded" if options.load else "trained"
    print(f"{data.name}: test accuracy {accuracy:.3f}, {how} in {time.perf_counter() - start:.0f} s")

    reference = torch.as_tensor(rng.choice(len(x_train), 200 if options.quick else 1000, replace=False))
    chosen = torch.as_tensor(rng.choice(len(x_test), 5, replace=False))
    x_ref, y_ref, x_query, y_query = x_train[reference], y_train[reference], x_test[chosen], y_test[chosen]

    start = time.perf_counter()
    explainer = GradientSimilarity(
        network, nn.functional.cross_entropy, sim_fn="grad_cos", precompute_grads=True, backend="pytorch"
    )
    explainer.fit(x_ref, y_ref)
    result = explainer.explain(x_query, y_query)
    print(f"{len(x_ref)} reference images ranked in {time.perf_counter() - start:.0f} s")

    predictions, reference_predictions = predict(network, x_query), predict(network, x_ref)
    print_neighbours(data, y_query.numpy(), predictions, y_ref.numpy()[result.ordered_indices[:, :5]])

    options.out.mkdir(parents=True, exist_ok=True)
    similar = plot_similar(
        result,
        x_query,
        x_ref,
        y_query,
        y_ref,
        query_predictions=predictions,
        train_predictions=reference_predictions,
        class_names=data.class_names,
    )
    similar.savefig(options.out / "similar.png", dpi=130)
    distributions = plot_distributions(
        result,
        y_ref,
        reference_predictions,
        X_query=x_query,
        y_query=y_query,
        query_predictions=predictions,
        class_names=data.class_names,
    )
    distributions.savefig(options.out / "distributions.png", dpi=130)
    print(f"wrote {options.out / 'similar.png'} and {options.out / 'distributions.png'}")


if __name__ == "__main__":
    main()
