"""The example scripts run as a reader runs them, on the digits that ship with scikit-learn."""

import importlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests import programs

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STUDIES = ["01_mnist_study_torch.py", "02_mnist_study_keras.py"]


def run(script, *options, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "GRADINDEX_DATA"}
    environment.update(PYTHONPATH=os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]), **variables)
    framework = "tensorflow" if "import keras" in (EXAMPLES / script).read_text(encoding="utf-8") else "torch"
    return programs.run([EXAMPLES / script, *options], framework=framework, env=environment)


def run_transformers(*arguments):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = run(*arguments)
    if "Are this object's requirements defined correctly?" in done.stderr:  # such as a torchvision of another torch
        pytest.skip(f"Transformers cannot be imported here: {done.stderr.splitlines()[-1]}")
    return done


@pytest.fixture(scope="module", params=STUDIES)
def study(request, tmp_path_factory):
    """A study's script, the folder that it left something in, and how it ended."""
    pytest.importorskip("torch" if "torch" in request.param else "tensorflow")
    folder = tmp_path_factory.mktemp("study")
    return request.param, folder, run(request.param, "--quick", "--out", folder)


def test_a_study_prints_its_table_and_draws_its_pictures(study):
    _, folder, done = study
    assert done.returncode == 0, done.stderr
    instead = "in the place of MNIST: GRADINDEX_DATA is not set"
    assert done.stdout.startswith(f"data: digits, 1400 training and 397 test images of 8×8, {instead}\n")
    assert float(re.search(r"digits: test accuracy (0\.\d+)", done.stdout).group(1)) > 0.9
    lines = re.findall(r"^(\d) +(\d) +(\d) +(\d+)% +(\d, \d, \d, \d, \d)$", done.stdout, re.MULTILINE)
    assert [int(line[0]) for line in lines] == [0, 1, 2, 3, 4]
    shares = [int(line[3]) for line in lines]
    for line, share in zip(lines, shares, strict=True):
        assert share == 20 * line[4].split(", ").count(line[1])
    assert f"share of neighbours with the query's class: {sum(shares) / 5:.0f}%" in done.stdout
    assert sum(shares) / 5 >= 90
    for name in ("similar.png", "distributions.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_study_is_repeated_with_the_model_it_saved(study, tmp_path):
    script, folder, trained = study
    loaded = run(script, "--quick", "--out", folder, "--load")
    assert loaded.returncode == 0, loaded.stderr

    def told(done, how):
        return re.sub(rf"{how} in \d+ s|ranked in \d+ s", "", done.stdout)

    assert ", trained in " in trained.stdout and ", loaded in " in loaded.stdout
    assert told(loaded, "loaded").splitlines()[:2] == told(trained, "trained").splitlines()[:2]  # the same accuracy
    assert len(re.findall(r"^\d +\d +\d +\d+%", loaded.stdout, re.M)) == 5
    lost = run(script, "--quick", "--load", "--out", tmp_path)
    assert lost.returncode != 0 and "model." in lost.stderr


def test_a_model_and_its_checkpoints_are_what_a_run_before_left(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from gradindex.influence import CheckpointRecorder

    monkeypatch.syspath_prepend(str(EXAMPLES))
    saved = importlib.import_module("saved")
    models, recorders = ([make() for _ in (0, 1)] for make in (network, lambda: CheckpointRecorder(adam=True)))
    optimizer = torch.optim.Adam(models[0].parameters(), lr=0.125)

    def train():
        for _ in (0, 1):
            models[0](torch.ones(3, 2)).square().sum().backward()
            optimizer.step()
            recorders[0].record(models[0], optimizer)

    file, along = tmp_path / "new" / "model.pt", tmp_path / "new" / "checkpoints.npz"
    with pytest.raises(FileNotFoundError, match=r"There is no .*model\.pt: run this once without --load"):
        saved.trained(file, True, models[1], train)
    saved.trained(file, False, models[0], train)
    saved.recorded(along, False, models[0], recorders[0])
    saved.trained(file, True, models[1], pytest.fail)
    saved.recorded(along, True, models[1], recorders[1])
    assert states(models[0].state_dict()) == states(models[1].state_dict())
    assert not models[1].training
    first, again = (one.checkpoints for one in recorders)
    assert len(first) == len(again) == 2 and first[0].state.keys() == again[0].state.keys()
    for one, other in zip(first, again, strict=True):
        assert states(one.state) == states(other.state)
        assert one.learning_rate == other.learning_rate == 0.125
        assert [part.tolist() for part in one.preconditioner] == [part.tolist() for part in other.preconditioner]


def network():
    from torch import nn

    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))  # which counts its batches, in an integer


def states(state):
    return {name: value.tolist() for name, value in state.items()}


def test_metrics_are_compared_on_digits(tmp_path):
    pytest.importorskip("torch")
    done = run("03_which_metric_digits.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: scikit-learn's digits, 898 training and 899 test images of 8×8")
    assert "most often right about class and subclass: GC" in done.stdout
    assert "\nGC can be trusted: it passes every test that was run, class 1.00 (by chance 0." in done.stdout
    saved = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["summary"]
    assert saved["class"]["GC"]["mean"] > 0.95
    assert saved["randomization"]["l2-x"]["mean"] == pytest.approx(1)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.glob("model-*.pt"))) == 2  # of ten classes, and of the two that they are merged into
    assert run("03_which_metric_digits.py", "--quick", "--load", "--out", tmp_path).stdout == done.stdout


def test_metrics_are_compared_on_texts(tmp_path):
    pytest.importorskip("torch")
    done = run("04_which_metric_texts.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.match(r"data: 600 sentences of four random words, 3 sections, in the place of descr", done.stdout)
    assert len(re.findall(r"^  GC +(games|sound|net) +\w+ \w+ \w+ \w+$", done.stdout, re.MULTILINE)) == 4
    for kind in ("logreg", "embeddings"):
        summary = json.loads((tmp_path / f"{kind}.json").read_text(encoding="utf-8"))["summary"]
        assert summary["class"]["GC"]["mean"] > 0.95


@pytest.fixture(scope="module")
def densities(tmp_path_factory):
    """The folder of the study of density estimators, and how it ended."""
    folder = tmp_path_factory.mktemp("densities")
    return folder, run("05_density_influence.py", "--quick", "--out", folder)


def test_density_estimators_are_explained(densities):
    folder, done = densities
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 580 points in the plane, 6 clusters of 150, 150, 100, 100, 60, 20\n")
    table = {
        name.strip(): values
        for name, *values in re.findall(r"^(.{24})(\d+) of \d+ +(\d+) of \d+ +(\d+) of \d+$", done.stdout, re.MULTILINE)
    }
    assert table["20 nearest neighbours"] == ["20", "0", "20"]
    assert table["kernel density"][:2] == ["20", "0"]
    assert int(table["Gaussian mixture"][1]) > 0
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    nearest, mixture = figures["20 nearest neighbours"], figures["Gaussian mixture"]
    assert nearest["proponents among the nearest"] == 20
    assert nearest["distance of proponents"] <= mixture["distance of proponents"] < 1 < mixture["distance of opponents"]
    assert mixture["self-influence and distance to the mean"] > 0.5
    for name in ("density.png", "influence.png", "self-influence.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert run("05_density_influence.py", "--load", "--out", folder).stdout == done.stdout


def test_changed_labels_are_found(tmp_path):
    pytest.importorskip("torch")
    done = run("06_mislabelled_data.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: digits, 1400 training and 397 test images of 8×8, in the place of MNIST")
    auc = dict(re.findall(r"^(\S.*?) {2,}(0\.\d{3}) ", done.stdout, re.MULTILINE))
    assert "140 of 1400 labels changed" in done.stdout
    assert float(auc["self-influence along training (TracIn)"]) > 0.95
    assert float(auc["labels of gradient neighbours and opponents"]) > 0.7
    for name in ("precision-recall.png", "self-influence.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("script", ["07_vae_tracin.py", "10_vae_tracin_keras.py"])
def test_a_vae_is_explained(script, tmp_path):
    pytest.importorskip("tensorflow" if "keras" in script else "torch")
    done = run(script, "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr

    assert done.stdout.startswith("data: digits, 1400 training and 397 test images of 8×8, in the place of MNIST")
    assert re.search(r"^of them \d+ to train on, 175 held out, \d+ to ask about$", done.stdout, re.MULTILINE)
    for_five, for_one = map(int, re.search(r"(\d+) for 5% of it, (\d+) for 1%$", done.stdout, re.MULTILINE).groups())
    assert for_one == pytest.approx(25 * for_five, rel=0.5)

    def figure(text):
        return float(re.search(re.escape(text) + r":? +([\d.]+)", done.stdout).group(1))

    assert figure("training images that are their own strongest proponent") >= 95
    assert figure("strongest proponents with the test image's label") >= 70
    assert figure("self-influence against loss: Spearman") > 0.3
    assert (
        float(re.search(r"AUC of self-influence for \d+ digits with shuffled pixels: ([\d.]+)", done.stdout)[1]) > 0.7
    )
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    near, far = (figures[f"latent distance of {side}"] for side in ("proponents", "opponents"))
    assert figures["latent distance of the nearest"] <= near < far
    assert near < 0.7  # of the mean distance
    assert figures["strangers among the highest"] > 0.3  # by chance 0.05
    assert figures["change without as many at random"] == 0
    losses = [figures[f"held-out loss without {what}"] for what in ("the strangers", "as many at random")]
    assert figures["change without the strangers"] == pytest.approx(losses[0] - losses[1])
    for name in ("extremes.png", "self-influence.png", "proponents.png", "samples.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_text_classifier_is_explained(tmp_path):
    done = run_transformers("08_text_classifier.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 500 sentences of four random words, 3 sections, in the place of descriptions")
    assert "a small BERT with random weights, in the place of a pre-trained encoder: " in done.stdout
    for name in ("all parameters", "last layer"):
        share = re.search(rf"^{name}: nearest text with the predicted section ([\d.]+)%", done.stdout, re.MULTILINE)
        assert float(share.group(1)) > 90
        assert (
            len(re.findall(rf"^  {name}:\n(?:    [ \d.-]{{6}}  (?:games|sound|net) +.+\n){{3}}", done.stdout, re.M))
            == 4
        )
    assert (tmp_path / "neighbours.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_classifier_of_emotions_is_loaded_again(tmp_path):
    lines = ["i feel so glad today;joy", "i feel low and tired;sadness", "i am cross with you;anger"]
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).write_text("\n".join(lines * 100), encoding="utf-8")
    options = ("08_text_classifier.py", "--quick", "--emotions", tmp_path, "--out", tmp_path / "out")
    done = run_transformers(*options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 300 training and 200 test texts of the emotions data set, 6 labels\n")
    again = run_transformers(*options, "--load")
    assert again.returncode == 0, again.stderr
    assert "epoch 1: loss" in done.stdout and "epoch" not in again.stdout
    assert [line for line in done.stdout.splitlines() if "%" in line] == [
        line for line in again.stdout.splitlines() if "%" in line
    ]


def test_a_language_model_is_explained(tmp_path):
    done = run_transformers("09_language_model.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: 304 sentences of four random words, 3 sections, in the place of descriptions")
    assert done.stdout.count("  proponents:\n") == done.stdout.count("  opponents:\n") == 4
    assert float(re.search(r"add up to the text's, to (\S+) of the largest", done.stdout).group(1)) < 1e-5
    assert (tmp_path / "tokens.png").read_bytes().startswith(b"\x89PNG")


def test_a_chat_model_is_explained(tmp_path):
    pytest.importorskip("peft")
    done = run_transformers("14_chat_lora.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    answers = re.findall(r"^'.*': '(\w+)' \(is '(\w+)'\)$", done.stdout, re.MULTILINE)
    assert len(answers) == 4
    assert sum(answer == section for answer, section in answers) >= 3
    assert len(re.findall(r"^  [ \d.-]{6}  .+: (?:games|sound|net)$", done.stdout, re.MULTILINE)) == 20
    assert int(re.search(r"behind an answer that give the same one: (\d+)%", done.stdout).group(1)) >= 90
    strongest = re.findall(r"^  of the first, by its tokens: '(\w+)'", done.stdout, re.MULTILINE)
    assert strongest == [answer for answer, _ in answers]  # a section's name, of all the tokens of a conversation


def test_a_residual_network_is_explained(tmp_path):
    pytest.importorskip("tensorflow")
    done = run("11_resnet50_study.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data: digits, 60 training and 100 test images of 32×32, enlarged, in the place of ImageNet's" in done.stdout
    assert "parameters, random weights, in the place of ImageNet's (--weights)" in done.stdout
    same, chance = re.search(r"neighbours with the query's class: (\d+)%; of any image (\d+)%", done.stdout).groups()
    assert int(same) > 2 * int(chance)
    for name in ("similar.png", "distributions.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_residual_network_keeps_its_own_head(tmp_path, monkeypatch):
    """Classes are found in the table that Keras has, by WordNet ids and by names."""
    pytest.importorskip("keras")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    study = importlib.import_module("11_resnet50_study")
    table = {str(number): [f"n{number:08}", f"class_{number}"] for number in range(1000)}
    (tmp_path / "classes.json").write_text(json.dumps(table), encoding="utf-8")
    assert study.places(("n00000162", "class_6"), tmp_path / "classes.json").tolist() == [162, 6]
    with pytest.raises(ValueError, match="trilobites is no class of ImageNet: subfolders must have WordNet ids"):
        study.places(("class_6", "trilobites"), tmp_path / "classes.json")
    model = study.whole(None, 32)
    assert model.count_params() == 25_636_712
    probabilities = model(np.zeros((2, 32, 32, 3), np.float32)).numpy()
    assert probabilities.shape == (2, 1000) and probabilities.sum(axis=1) == pytest.approx(1)


def test_data_are_selected(tmp_path):
    done = run_transformers("15_select_data.py", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    table = dict(re.findall(r"^(\S.*?) {2,}(\d+\.\d{3})  \d+%$", done.stdout, re.M))
    assert {"kernel white_dot", "kernel grad_cos", "hidden vectors", "at random", "all of the pool"} <= set(table)
    assert float(table["kernel white_dot"]) < float(table["at random"])
    best = min(table, key=lambda name: float(table[name]))
    assert f"the lowest loss is that of: {best}" in done.stdout
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_data_that_are_not_there_are_explained(tmp_path):
    unset = run(STUDIES[0], "--data", "mnist")
    assert unset.returncode != 0
    assert "GRADINDEX_DATA is not set: set it to the folder that holds mnist10k.npz" in unset.stderr
    empty = run(STUDIES[0], "--data", "fashion", GRADINDEX_DATA=str(tmp_path))
    assert f"There is no {tmp_path / 'fashion-mnist' / 'train-images-idx3-ubyte.gz'}" in empty.stderr


def test_a_database_has_the_same_neighbours(tmp_path):
    done = run("12_hand_over_lancedb.py", "--quick", "--out", tmp_path / "out", "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: scikit-learn's digits, 300 training images of 8×8 and 20 queries\n")
    if "LanceDB is not installed" not in done.stdout:
        assert int(re.search(r"(\d+) of 200 neighbours are the same", done.stdout).group(1)) > 190
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"index", "parquet", "lancedb"}


def test_quanda_agrees(tmp_path):
    pytest.importorskip("quanda")
    done = run("13_quanda.py", "--quick", "--out", tmp_path, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data: scikit-learn's digits, 300 training and 50 test images of 8×8\n")
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {"GC", "GD", "cos-last", "dot-x", "GC (index)"} == set(figures["class detection"])


def test_the_seed_is_that_of_all_that_is_drawn(densities, tmp_path):
    again, other = (run("05_density_influence.py", "--seed", seed, "--out", tmp_path) for seed in (0, 5))
    first, again, other = (done.stdout.splitlines()[:-1] for done in (densities[1], again, other))  # without the folder
    assert first == again != other


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("[0-9]*.py")))
def test_every_example_takes_the_same_options(script):
    """From one place, or by itself."""
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    shared = re.search(r"\b(arguments|parser_of)\(__doc__, ", text)
    assert shared or all(f'"--{name}"' in text for name in ("out", "seed", "quick"))
    for name in ("out", "seed", "quick"):
        assert f"options.{name}" in text or (name == "quick" and script.startswith("05")) or "run(options" in text, name


def test_the_gallery_names_every_script_and_its_pictures_exist():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in sorted(EXAMPLES.glob("[0-9]*.py")):
        assert script.name in text
    for picture in re.findall(r"\]\((pictures/[^)]+)\)", text):
        assert 0 < (EXAMPLES / picture).stat().st_size < 200_000, picture
