"""The paper's data sets are read from small files of the same form, fetched where they lack, and its models are its."""

import csv
import json
import pickle
import re
import sys
import types

import numpy as np
import pytest

from tests.test_examples import EXAMPLES, run

torch = pytest.importorskip("torch")
sys.path.insert(0, str(EXAMPLES))

import paper_data  # noqa: E402
import paper_models  # noqa: E402


def cifar(folder, count=20):
    """Write CIFAR10 as its publisher does, five batches and one for tests; return the first batch's pixels."""
    inner, random = folder / "cifar-10-batches-py", np.random.default_rng(0)
    inner.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [i % 10 for i in range(count)], b"batch_label": name.encode()}
        (inner / name).write_bytes(pickle.dumps(batch, protocol=2))
    return random


QUESTIONS = (
    "NUM:date When did Hawaii become a state ?",
    "LOC:city What is the capital of Zimbabwe ?",
    "HUM:ind Who is it ?",
)


def trec(folder):
    for name, times in (("train_5500.label", 40), ("TREC_10.label", 10)):
        (folder / name).write_bytes("\n".join(QUESTIONS * times).encode("latin-1"))


def agnews(folder):
    rows = [["3", "Wall St. falls, again", 'A "description"'], ["4", "A chip", "of silicon"], ["2", "A goal", "late"]]
    rows.append(["1", "A summit", "of states"])
    for name, times in (("train.csv", 40), ("test.csv", 10)):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows * times)


def newsgroups(folder):
    for part in ("train", "test"):
        for group, text in (
            ("sci.space", "Subject: orbit\n\nThe moon \xb0"),
            ("rec.autos", "Subject: cars\n\nAn engine"),
        ):
            inner = folder / f"20news-bydate-{part}" / group
            inner.mkdir(parents=True)
            for number in range(30):
                (inner / str(50000 + number)).write_bytes(text.encode("latin-1"))


def emotions(folder):
    lines = ["i feel fine; really;joy", "i feel low;sadness", "i am cross;anger"]
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text("\n".join(lines * 300) + "\n", encoding="utf-8")


def test_batches_of_cifar10_are_read(tmp_path):
    cifar(tmp_path)
    found = paper_data.load("cifar10", tmp_path)
    assert found.x_train.shape == (100, 3, 32, 32) and found.x_test.shape == (20, 3, 32, 32)
    assert found.y_train.tolist() == [i % 10 for i in range(20)] * 5
    first = pickle.loads((tmp_path / "cifar-10-batches-py" / "data_batch_1").read_bytes())[b"data"]
    # 1,024 red values row by row, then green, then blue.
    assert found.x_train[3, 1, 2, 5] == np.float32(first[3, 1024 + 2 * 32 + 5]) / 255
    assert found.x_train.min() >= 0 and found.x_train.max() <= 1


def test_a_batch_that_calls_something_is_refused(tmp_path):
    cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is no part of a batch of CIFAR10"):
        paper_data.load("cifar10", tmp_path)


def test_a_batch_of_another_form_is_refused(tmp_path):
    cifar(tmp_path)
    batch = {b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 1]}
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(ValueError, match=r"test_batch is no batch of CIFAR10: its data are uint8 \(2, 100\)"):
        paper_data.load("cifar10", tmp_path)


def test_questions_have_their_coarse_class(tmp_path):
    trec(tmp_path)
    found = paper_data.load("trec", tmp_path)
    assert found.classes == ("HUM", "LOC", "NUM")
    assert found.x_train[1] == "What is the capital of Zimbabwe ?"
    assert found.y_train[:3].tolist() == [2, 1, 0] and len(found.y_train) == 120 and len(found.y_test) == 30


def test_news_are_their_titles(tmp_path):
    agnews(tmp_path)
    found = paper_data.load("agnews", tmp_path)
    assert found.classes == ("World", "Sports", "Business", "Sci/Tech")
    assert found.x_train[0] == "Wall St. falls, again"
    assert found.y_train[:4].tolist() == [2, 3, 1, 0] and len(found.y_test) == 40


def test_newsgroups_are_folders(tmp_path):
    newsgroups(tmp_path)
    found = paper_data.load("20news", tmp_path)
    assert found.classes == ("rec.autos", "sci.space")
    assert len(found.y_train) == len(found.y_test) == 60
    assert found.x_train[int(np.flatnonzero(found.y_train == 1)[0])] == "Subject: orbit\n\nThe moon °"


def test_the_label_of_an_emotion_is_behind_the_last_semicolon(tmp_path):
    emotions(tmp_path)
    found = paper_data.load("emotions", tmp_path)
    assert found.x_train[0] == "i feel fine; really" and found.y_train[:3].tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    ("name", "file", "line", "said"),
    [
        ("trec", "train_5500.label", "When did Hawaii become a state ?", "is no line of TREC"),
        ("agnews", "train.csv", '"5","title","description"', "expected a class from 1 to 4"),
        ("emotions", "train.txt", "i feel fine", "is no line of the emotions data set"),
    ],
)
def test_a_line_of_another_form_is_refused(name, file, line, said, tmp_path):
    {"trec": trec, "agnews": agnews, "emotions": emotions}[name](tmp_path)
    (tmp_path / file).write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        paper_data.load(name, tmp_path)


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Unknown data set 'svhn'; expected one of cifar10, trec, agnews, 20news"):
        paper_data.load("svhn", tmp_path)


@pytest.mark.parametrize(
    ("name", "library", "files"),
    [
        ("cifar10", "torchvision", "put cifar-10-batches-py there"),
        ("trec", "datasets", "put train_5500.label and TREC_10.label there"),
        ("agnews", "datasets", "put train.csv and test.csv there"),
        ("emotions", "datasets", "put train.txt and test.txt there"),
    ],
)
def test_what_is_missing_is_named(name, library, files, tmp_path, monkeypatch):
    for module in (library, f"{library}.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"{files}, or type pip install {library} to fetch it"):
        paper_data.load(name, tmp_path)


def test_torchvision_fetches_cifar10(tmp_path, monkeypatch):
    asked = []

    def fetch(root, download):
        asked.append((root, download))
        cifar(tmp_path)

    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(CIFAR10=fetch))
    assert len(paper_data.load("cifar10", tmp_path).y_train) == 100
    assert asked == [(str(tmp_path), True)]
    paper_data.load("cifar10", tmp_path)
    assert len(asked) == 1


def test_hugging_face_fetches_texts(tmp_path, monkeypatch):
    """A stored data set of the same columns, through the library's own types where it is installed."""
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=["ABBR", "ENTY", "DESC"])
    made = datasets.Dataset.from_dict(
        {"text": ["What is it ?", "What does NASA mean ?"], "coarse_label": [1, 0]},
        features=datasets.Features({"text": datasets.Value("string"), "coarse_label": label}),
    )
    asked = []

    def load_dataset(name, split, cache_dir):
        asked.append((name, split, cache_dir))
        return made

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = paper_data.load("trec", tmp_path)
    assert asked == [("CogComp/trec", part, str(tmp_path)) for part in ("train", "test")]
    assert found.classes == ("ABBR", "ENTY") and found.y_train.tolist() == [1, 0]


def test_scikit_learn_fetches_newsgroups(tmp_path, monkeypatch):
    import sklearn.datasets

    def fetch(data_home, subset, shuffle):
        assert data_home == str(tmp_path) and not shuffle
        return types.SimpleNamespace(data=[f"a {subset} text"], target=[1], target_names=["a.b", "c.d"])

    monkeypatch.setattr(sklearn.datasets, "fetch_20newsgroups", fetch)
    found = paper_data.load("20news", tmp_path)
    assert (found.x_train, found.x_test, found.classes) == (["a train text"], ["a test text"], ("c.d",))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_models_are_as_large_as_the_papers(monkeypatch):
    """Tables 2 to 6: MobileNetV2 2.2M, CNN 12K, logistic regression 31K; Bi-LSTM 20K and 27K, with their words."""
    from importlib import import_module

    monkeypatch.syspath_prepend(EXAMPLES)
    for name in ("data", "texts"):  # of the same names in benchmarks, where a test has imported them
        monkeypatch.delitem(sys.modules, name, raising=False)
    cases = import_module("16_paper_cases").CASES
    assert size(paper_models.mobilenet_v2(10)) == 2_236_682  # that of torchvision with ten classes
    assert round(size(paper_models.cnn(3, 10)) / 1000) == 12
    assert round(size(paper_models.logistic_regression(3072, 10)) / 1000) == 31
    assert round(size(paper_models.BiLSTM(cases["trec-bilstm"].words, 6)) / 1000) == 20
    assert round(size(paper_models.BiLSTM(cases["agnews-bilstm"].words, 4)) / 1000) == 27
    assert round(size(paper_models.logistic_regression(cases["trec-logreg"].words, 6)) / 1000) == 7
    assert round(size(paper_models.logistic_regression(cases["agnews-logreg"].words, 4)) / 1000) == 9
    assert [cases[f"{name}-bilstm"].train for name in ("trec", "agnews")] == [2726, 6000]
    assert {cases[f"cifar10-{kind}"].train for kind in ("cnn", "logreg", "mobilenetv2")} == {5000}


def test_mobilenet_halves_images_three_times_and_has_shortcuts_where_shapes_allow():
    model = paper_models.mobilenet_v2(10).eval()
    blocks = [layer for layer in model if isinstance(layer, paper_models.InvertedResidual)]
    assert len(blocks) == 17 and sum(block.shortcut for block in blocks) == 10
    found, x = [], torch.rand(1, 3, 32, 32)
    for layer in model[:-3]:  # without what follows the pooling
        x = layer(x)
        found.append(x.shape[-1])
    assert sorted(set(found), reverse=True) == [32, 16, 8, 4, 1]
    with torch.no_grad():  # a block with a shortcut is its input where its last layer is 0
        block = next(block for block in blocks if block.shortcut)
        for parameter in block.layers[-1].parameters():
            parameter.zero_()
        inside = torch.rand(1, block.layers[-1].num_features, 4, 4)
        assert torch.equal(block(inside), inside)


def test_a_bilstm_takes_the_state_at_the_last_word_and_the_one_at_the_first():
    torch.manual_seed(0)
    model = paper_models.BiLSTM(50, 4).eval()
    words = torch.tensor([[5, 9, 7, 0, 0], [6, 2, 2, 3, 8], [4, 0, 0, 0, 0]])
    states, _ = model.lstm(model.embedding(words))
    rows = [torch.cat([states[row, last, :16], states[row, 0, 16:]]) for row, last in enumerate((2, 4, 0))]
    torch.testing.assert_close(model(words), model.out(torch.stack(rows)))
    assert torch.equal(model.embedding(words)[0, 3:], torch.zeros(2, 16))


def test_words_are_counted_and_numbered():
    texts = ["The cat, the CAT sat", "a cat", "dogs"]
    words = paper_models.vocabulary(texts, 2)
    assert words == {"cat": 0, "the": 1}
    assert paper_models.bags(texts, words).tolist() == [[2, 2], [1, 0], [0, 0]]
    assert paper_models.numbers(texts, words, 4).tolist() == [[3, 2, 3, 2], [1, 2, 0, 0], [1, 0, 0, 0]]


def few_images(folder):
    cifar(folder, 5)


@pytest.mark.parametrize(
    ("case", "write"),
    [
        ("cifar10-cnn", cifar),
        ("cifar10-mobilenetv2", few_images),
        ("trec-bilstm", trec),
        ("agnews-logreg", agnews),
        ("emotions-logreg", emotions),
    ],
)
def test_a_case_runs_on_a_small_file_of_the_same_form(case, write, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    done = run("16_paper_cases.py", "--quick", "--case", case, "--root", tmp_path / "data", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert re.match(rf"data: {case.partition('-')[0]}, \d+ training and \d+ test samples from ", done.stdout)
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    assert {"class", "subclass", "randomization"} <= set(figures["summary"])
    assert "GC" in figures["summary"]["class"] and ("cos-FK" in figures["summary"]["class"]) == ("mobile" not in case)
    assert figures["factors"]["cos(r, r'), same class"] > figures["factors"]["cos(r, r'), other class"]
    if "cifar" not in case:  # images are of random pixels
        assert figures["summary"]["class"]["GC"]["mean"] > figures["null"]["class"]["GC"][1]
    for name in (
        "chart.png",
        "norms.png",
        "factors.png",
        *(["neighbours.png"] if "cifar" in case else []),
        *(["map.png"] if "cnn" in case else []),
    ):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
