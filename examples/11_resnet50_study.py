"""Find the training images that a ResNet-50 takes test images to be like.

After the ImageNet study of the similarity method: a few hundred images, a ResNet-50 (Keras), gradients of all of its 23
million parameters. They are sketched in batches that fit a memory budget and indexed, and test images are explained
with exact scores; no gradient is kept. ``--images FOLDER`` takes a folder of pictures with one subfolder a class, such
as ten classes of ImageNet; without it Fashion-MNIST or scikit-learn's digits are enlarged. ``--weights`` is
``imagenet`` (which Keras downloads) or a ``.weights.h5`` file. Without it the weights of ImageNet are used if Keras has
them already, else random ones, with a head fitted to the training images in either case. ``--own-head`` is the study's
own form: the network's head of 1,000 classes and the loss of its probabilities, for subfolders with WordNet ids. Run it
with ``python examples/11_resnet50_study.py``; the pictures are drawn into the folder ``--out``.
"""

import json
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from data import VARIABLE, add_load, load, parser_of
from saved import trained

import gradindex
from gradindex.plots import plot_distributions, plot_similar

RANDOM = "random weights, in the place of ImageNet's (--weights)"
INDEX, STORED = "imagenet_class_index.json", "https://storage.googleapis.com/download.tensorflow.org/data"
CACHED = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"


@dataclass(frozen=True)
class Pictures:
    """Colour pictures (n, side, side, 3) float32 from 0 to 255 and labels (n,), the first to train on."""

    name: str
    x: np.ndarray
    y: np.ndarray
    names: tuple[str, ...]


def read_folder(folder: Path, side: int, count: int, seed: int) -> Pictures:
    """Read pictures from a folder with one subfolder a class, shuffled."""
    found = keras.utils.image_dataset_from_directory(
        folder, image_size=(side, side), batch_size=None, shuffle=True, seed=seed, verbose=False
    )
    x, y = zip(*found.take(count).as_numpy_iterator(), strict=True)
    return Pictures(folder.name, np.stack(x).astype(np.float32), np.array(y, np.int64), tuple(found.class_names))


def enlarge(name: str, side: int, count: int) -> Pictures:
    """Return grey pictures of a data set in colour, enlarged."""
    data = load(name, count)
    x = tf.image.resize(data.x_train[..., None] * 255, (side, side)).numpy()
    names = data.class_names or tuple(map(str, range(10)))
    return Pictures(name, np.repeat(x, 3, axis=-1), data.y_train, names)


def resnet(weights: str | None, side: int, classes: int, stages: int) -> keras.Model:
    """Return a ResNet-50 with a new head; of random weights, its first stages alone if fewer than 4 are asked for."""
    body = keras.applications.ResNet50(include_top=False, weights=weights, input_shape=(side, side, 3), pooling="avg")
    features = body.output
    if stages < 4:
        last = {1: "conv2_block3_out", 2: "conv3_block4_out", 3: "conv4_block6_out"}[stages]
        features = keras.layers.GlobalAveragePooling2D()(body.get_layer(last).output)
    return keras.Model(body.input, keras.layers.Dense(classes, name="head")(features))


def whole(weights: str | None, side: int) -> keras.Model:
    """Return ResNet-50 as it is, with the probabilities of ImageNet's 1,000 classes as output."""
    return keras.applications.ResNet50(include_top=True, weights=weights, input_shape=(side, side, 3))


def places(names: tuple[str, ...], file: Path | None) -> np.ndarray:
    """Return the numbers that ImageNet's classes have, by their WordNet ids or names (n,).

    `file` is Keras's table of the 1,000 classes, ``imagenet_class_index.json``; None: Keras has it, or fetches it.
    """
    table = json.loads(
        Path(file or keras.utils.get_file(INDEX, f"{STORED}/{INDEX}", cache_subdir="models")).read_text(
            encoding="utf-8"
        )
    )
    numbers = {name: int(number) for number, both in table.items() for name in both}
    lost = [name for name in names if name not in numbers]
    if lost:
        raise ValueError(f"{', '.join(lost)} is no class of ImageNet: subfolders must have WordNet ids, or names.")
    return np.array([numbers[name] for name in names])


def settle(model: keras.Model, x: np.ndarray) -> None:
    """Give batch normalisation the statistics of x, without which signals in random weights double in every block."""
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(x, training=True)


def fit_head(model: keras.Model, x: np.ndarray, y: np.ndarray, seed: int) -> None:
    """Fit the last layer to the features of the training images."""
    body, head = keras.Model(model.input, model.layers[-1].input), model.get_layer("head")
    features = body.predict(x, batch_size=32, verbose=0)
    keras.utils.set_random_seed(seed)
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-3
    single = keras.Sequential([keras.Input(features.shape[1:]), keras.layers.Dense(head.units)])
    single.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1), loss_of_logits())
    single.fit((features - mean) / spread, y, epochs=20, batch_size=32, verbose=0)
    kernel, bias = single.get_weights()
    head.set_weights([kernel / spread[:, None], bias - (mean / spread) @ kernel])


def loss_of_logits() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def memory() -> float:
    """Return the largest memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def chosen_weights(given: str | None) -> str | None:
    """Return what was asked for, else ImageNet's weights if Keras has them, else None for random ones."""
    here = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models" / CACHED
    return given if given is not None else (str(here) if here.is_file() else None)


def main() -> None:
    parser = parser_of(__doc__, "runs/resnet50", "the first stage of the network, few and small images")
    parser.add_argument("--images", type=Path, help="folder of pictures with one subfolder a class")
    parser.add_argument("--data", choices=("fashion", "mnist", "digits"), help="enlarge these instead")
    parser.add_argument("--weights", help="'imagenet', or a file of weights without the head")
    parser.add_argument(
        "--own-head", action="store_true", help="the 1,000 classes of ImageNet, side 224 with its weights"
    )
    parser.add_argument("--classes", type=Path, help=f"Keras's {INDEX}, for --own-head; fetched if it is not given")
    parser.add_argument("--side", type=int, default=64, help="width and height of the pictures")
    parser.add_argument("--count", type=int, default=300, help="training images")
    add_load(parser)
    options = parser.parse_args()
    side, count, stages = (32, 60, 1) if options.quick else (options.side, options.count, 4)
    queries, options.out = 5, options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(options.seed)

    if options.images is not None:
        pictures = read_folder(options.images, side, count + 100, options.seed)
    else:
        pictures = enlarge(options.data or ("fashion" if os.environ.get(VARIABLE) else "digits"), side, count + 100)
    count = min(count, len(pictures.x) - queries)
    instead = "" if options.images is not None else ", enlarged, in the place of ImageNet's (--images FOLDER)"
    print(
        f"data: {pictures.name}, {count} training and {len(pictures.x) - count} test images of {side}×{side}{instead}"
    )
    x = keras.applications.resnet50.preprocess_input(pictures.x.copy())
    (train, y), (test, y_test) = (x[:count], pictures.y[:count]), (x[count:], pictures.y[count:])
    weights = None if options.quick else chosen_weights(options.weights)
    if options.own_head:
        model, number = whole(weights and "imagenet", side), places(pictures.names, options.classes)
        y, y_test = number[y], number[y_test]
        names: tuple[str, ...] | None = None
    else:
        model, names = resnet(weights, side, len(pictures.names), stages), pictures.names

    def fit() -> None:
        if weights is None:
            settle(model, train[:64])
        if not options.own_head:
            fit_head(model, train, y, options.seed)

    trained(options.out / "model.keras", options.load, model, fit)
    predicted_train, predicted = (
        model.predict(part, batch_size=32, verbose=0).argmax(axis=1) for part in (train, test)
    )
    print(f"{pictures.name}, {side}×{side}: {model.count_params():,} parameters, {weights or RANDOM}")
    head = "its own head of 1,000 classes" if options.own_head else "a fitted head"
    print(f"test accuracy {np.mean(predicted == y_test):.2f} with {head}; memory so far {memory():.2f} GiB")

    loss = keras.losses.SparseCategoricalCrossentropy() if options.own_head else loss_of_logits()
    job = gradindex.Job(model, loss, (train, y), class_names=names)
    begin = time.perf_counter()
    index = gradindex.build(job, options.out / "index", overwrite=True)
    seconds = time.perf_counter() - begin
    formed = 4 * index.store.norms.size * sum(p.size for p in job.engine.parameters) / 2**30
    print(f"indexed {count} images in {seconds:.0f} s; gradients would be {formed:.1f} GiB, memory {memory():.2f} GiB")
    begin = time.perf_counter()
    result = index.explain(test[:queries], y_test[:queries], k=5, rerank=10)
    print(f"explained {queries} images in {time.perf_counter() - begin:.0f} s, memory {memory():.2f} GiB")
    same = y[result.ordered_indices] == y_test[:queries, None]
    print(
        f"neighbours with the query's class: {same.mean():.0%}; of any image {np.mean(y == y_test[:queries, None]):.0%}"
    )

    shown, shown_test = pictures.x[:count] / 255, pictures.x[count : count + queries] / 255
    similar = plot_similar(
        result,
        shown_test,
        shown,
        y_test[:queries],
        y,
        query_predictions=predicted[:queries],
        train_predictions=predicted_train,
        class_names=names,
    )
    similar.savefig(options.out / "similar.png", dpi=70)
    distributions = plot_distributions(
        index.explain(test[:queries], y_test[:queries], k=count, rerank=0),  # every image, scores of the sketches
        y,
        predicted_train,
        X_query=shown_test,
        y_query=y_test[:queries],
        query_predictions=predicted[:queries],
        class_names=names,
    )
    distributions.savefig(options.out / "distributions.png", dpi=70)
    print(f"wrote {options.out / 'similar.png'} and {options.out / 'distributions.png'}")


if __name__ == "__main__":
    main()
