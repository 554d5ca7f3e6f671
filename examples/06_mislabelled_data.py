"""Find mislabelled training samples by their influence on themselves.

A tenth of the training labels is changed at random, a network is trained on them, and its gradients are indexed: at the
end of training, and at checkpoints along it (TracIn). Samples are ranked by self-influence, which the store holds, and
by the labels of their gradient neighbours, which the index knows. Run it with
``python examples/06_mislabelled_data.py``; it prints how well each ranking finds the changed labels, writes that
into ``figures.json``, and draws two pictures.
"""

import json

import numpy as np
import torch
from data import Images, arguments, load, print_data
from matplotlib.figure import Figure
from saved import recorded, trained
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import nn

import gradindex
from gradindex.influence import CheckpointRecorder, label_disagreement
from gradindex.influence.plots import plot_self_influence
from gradindex.influence.self_influence import self_influence

SHARE = 0.1


def flip(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a tenth is another class than before, and which ones are."""
    random = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), bool)
    wrong[random.choice(len(labels), round(SHARE * len(labels)), replace=False)] = True
    other = (labels + random.integers(1, 10, len(labels))) % 10
    return np.where(wrong, other, labels), wrong


def train(model: nn.Module, recorder: CheckpointRecorder, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Train a network by SGD and record six checkpoints."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        if (epoch + 1) % (epochs // 6) == 0:
            recorder.record(model, optimizer)


def precision_recall(rankings: dict[str, np.ndarray], wrong: np.ndarray, data: Images) -> Figure:
    """Draw a precision-recall curve for each ranking."""
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.subplots()
    styles = ("-", "-", "--", "--", ":")
    colours = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#444444")
    for (name, scores), style, colour in zip(rankings.items(), styles, colours, strict=True):
        precision, recall, _ = precision_recall_curve(wrong, scores)
        axes.plot(recall, precision, style, color=colour, label=name, drawstyle="steps-post")
    axes.axhline(SHARE, color="#C4C4C4", linewidth=1)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=f"changed labels, {data.name}")
    axes.legend(fontsize=8, frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    options = arguments(__doc__, "runs/mislabelled-data", load=True)
    data = load(options.data, 10_000)
    print_data(data)
    x = data.x_train.reshape(len(data.x_train), -1)
    labels, wrong = flip(data.y_train, options.seed)
    torch.set_num_threads(1)
    epochs = 12 if options.quick else 60
    torch.manual_seed(options.seed)
    model, recorder = nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 10)), CheckpointRecorder()
    inputs, given = torch.from_numpy(x), torch.from_numpy(labels)
    trained(options.out / "model.pt", options.load, model, lambda: train(model, recorder, inputs, given, epochs))
    recorded(options.out / "checkpoints.npz", options.load, model, recorder)
    with torch.no_grad():
        test = model(torch.from_numpy(data.x_test.reshape(len(data.x_test), -1))).argmax(dim=1).numpy()
    print(
        f"{data.name}: {wrong.sum()} of {len(wrong)} labels changed; test accuracy {(test == data.y_test).mean():.3f}"
    )

    end, along = (
        gradindex.build(
            gradindex.Job(model, nn.CrossEntropyLoss(), (x, labels), checkpoints=checkpoints),
            options.out / name,
            overwrite=True,
        )
        for name, checkpoints in (("end", None), ("along", recorder.checkpoints))
    )
    rankings = {
        "self-influence along training (TracIn)": self_influence(along.store),
        "self-influence at the end": self_influence(end.store),
        "labels of gradient neighbours and opponents": label_disagreement(end),
        "labels of gradient neighbours": label_disagreement(end, opponents=False),
        "loss": end.store.columns["loss"],
    }
    print(f"{'ranking by':46}{'AUC':>7}{'average precision':>20}{'changed among the first ' + str(wrong.sum()):>30}")
    figures = {}
    for name, scores in rankings.items():
        figures[name] = {
            "AUC": roc_auc_score(wrong, scores),
            "average precision": average_precision_score(wrong, scores),
        }
        first = wrong[np.argsort(-scores, kind="stable")[: wrong.sum()]].mean()
        print(
            f"{name:46}{roc_auc_score(wrong, scores):7.3f}{average_precision_score(wrong, scores):20.3f}{first:30.1%}"
        )

    (options.out / "figures.json").write_text(json.dumps(figures, indent=1))
    precision_recall(rankings, wrong, data).savefig(options.out / "precision-recall.png", dpi=100)
    figure = plot_self_influence(
        rankings["self-influence along training (TracIn)"],
        end.store.columns["loss"],
        wrong,
        title=f"TracIn self-influence, {data.name}",
        marked_title="label changed",
    )
    figure.savefig(options.out / "self-influence.png", dpi=100)
    print(f"wrote {options.out / 'precision-recall.png'} and {options.out / 'self-influence.png'}")


if __name__ == "__main__":
    main()
