"""Find the training images that a Keras network takes a test image to be like.

The study of ``01_mnist_study_torch.py`` with Keras 3 on TensorFlow: a small convolutional network is trained on
images; then 1,000 random training images are ranked by the cosine between their loss gradients and that of each
of five random test images (Charpiat et al. 2019). Run it with ``python examples/02_mnist_study_keras.py``; it
prints a table and draws two pictures.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from data import arguments, load, print_data, print_neighbours
from keras import layers
from saved import trained

from gradindex import GradientSimilarity
from gradindex.plots import plot_distributions, plot_similar


def make_network(size: int) -> keras.Model:
    """Return the network for images (size, size, 1); its output is the classes' probabilities (10,)."""
    inputs = keras.Input((size, size, 1))
    x = layers.Conv2D(64, 2, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Conv2D(32, 2, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(0.3)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    logits = layers.Dense(10, name="logits")(x)
    return keras.Model(inputs, layers.Activation("softmax")(logits))


def main() -> None:
    options = arguments(__doc__, out="runs/mnist-study-keras", load=True)
    rng = np.random.default_rng(options.seed)
    keras.utils.set_random_seed(options.seed)
    data = load(options.data, train=8_000)
    print_data(data)
    x_train, x_test = data.x_train[..., None], data.x_test[..., None]
    y_train, y_test = keras.utils.to_categorical(data.y_train, 10), keras.utils.to_categorical(data.y_test, 10)

    network = make_network(x_train.shape[1])
    network.compile(keras.optimizers.Adam(2e-3), "categorical_crossentropy", metrics=["accuracy"])
    start = time.perf_counter()
    small = options.data == "digits"
    epochs = (20 if small else 6) // (2 if options.quick else 1)
    how_to = {"batch_size": 32 if small else 64, "epochs": epochs, "verbose": 0}
    trained(options.out / "model.keras", options.load, network, lambda: network.fit(x_train, y_train, **how_to))
    accuracy = network.evaluate(x_test, y_test, verbose=0, return_dict=True)["accuracy"]
    how = "loaded" if options.load else "trained"
    print(f"{data.name}: test accuracy {accuracy:.3f}, {how} in {time.perf_counter() - start:.0f} s")

    reference = rng.choice(len(x_train), 200 if options.quick else 1000, replace=False)
    chosen = rng.choice(len(x_test), 5, replace=False)
    x_ref, y_ref, x_query, y_query = x_train[reference], y_train[reference], x_test[chosen], y_test[chosen]

    start = time.perf_counter()
    explainer = GradientSimilarity(
        network, keras.losses.categorical_crossentropy, sim_fn="grad_cos", precompute_grads=True
    )
    explainer.fit(x_ref, y_ref)
    result = explainer.explain(x_query, y_query)
    print(f"{len(x_ref)} reference images ranked in {time.perf_counter() - start:.0f} s")

    predictions = network.predict(x_query, verbose=0).argmax(axis=1)
    reference_predictions = network.predict(x_ref, verbose=0).argmax(axis=1)
    neighbours = data.y_train[reference][result.ordered_indices[:, :5]]
    print_neighbours(data, data.y_test[chosen], predictions, neighbours)

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
