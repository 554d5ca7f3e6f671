"""Saving and loading an explainer: equal answers, no pickle, and refusals that name what differs."""

import json
import re
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gradindex
from gradindex import DamagedIndexError, GradientSimilarity, MismatchError
from gradindex.store.manifest import publish
from tests.oracles import KERNELS, points

X, Y = points(12)
QUERIES, LABELS = points(3, seed=1)
KEPT = {"nothing": {}, "gradients": {"precompute_grads": True}, "index": {"index": "Flat"}}


def assert_no_pickle(folder):
    """Every file is JSON, a plain NumPy array, Parquet, or FAISS's own format."""
    import pyarrow.parquet

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        head = path.read_bytes()[:2]
        assert head[:1] != b"\x80", f"{path} looks like a pickle"
        assert head != b"PK", f"{path} is an archive, which may hold pickles"
        if path.suffix == ".npy":
            assert np.load(path, allow_pickle=False).dtype.kind != "O"
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pyarrow.parquet.read_table(path)
        else:
            assert path.suffix == ".faiss", f"{path}: unknown kind of file"


def saved(kit, path, model=None, **options):
    explainer = kit.explainer(model or kit.mlp(), kit.named_loss("classes"), "grad_cos", **options).fit(X, Y)
    explainer.save(path)
    return explainer


class TestSavedAgain:
    """A save over another one: there is always one that loads."""

    def names(self, path):
        return sorted(re.sub(r"\.[0-9a-f]{8}", "", one.name) for one in path.iterdir())

    def test_an_explainer_saved_onto_its_own_files(self, torch_kit, tmp_path, monkeypatch):
        model, out = torch_kit.mlp(), tmp_path / "save"
        expected = saved(torch_kit, out, model, index="Flat").explain(X, Y, k=3)
        names = self.names(out)
        (out / "notes.txt").write_text("the user's own")
        (tmp_path / "link").symlink_to(out)
        monkeypatch.chdir(tmp_path)
        for spelling in ("save", out, "link", "link/../save"):
            GradientSimilarity.load(spelling, model).save(out)
            found = GradientSimilarity.load(out, model).explain(X, Y, k=3)
            assert_array_equal(found.scores, expected.scores)
        assert self.names(out) == sorted([*names, "notes.txt"])

    def test_a_save_that_fails_leaves_the_last_one(self, torch_kit, tmp_path, monkeypatch):
        model = torch_kit.mlp()
        expected = saved(torch_kit, tmp_path, model, precompute_grads=True, index="Flat").explain(X, Y, k=3)
        before = sorted(tmp_path.rglob("*"))
        again = torch_kit.explainer(model, torch_kit.named_loss("classes"), "grad_cos", index="Flat").fit(X[:6], Y[:6])

        def full(*_, **__):
            raise OSError(28, "full")

        for broken in ("_save_index", "publish"):
            with monkeypatch.context() as patch:
                patch.setattr(f"gradindex.interop.alibi_saved.{broken}", full)
                with pytest.raises(OSError, match="full"):
                    again.save(tmp_path)
            assert sorted(tmp_path.rglob("*")) == before
            assert_array_equal(GradientSimilarity.load(tmp_path, model).explain(X, Y, k=3).scores, expected.scores)
        again.save(tmp_path)
        assert len(GradientSimilarity.load(tmp_path, model).X_train) == 6

    def test_a_save_of_version_1_opens(self, torch_kit, tmp_path):
        """Written here as version 1 wrote it: files of fixed names, which the manifest does not tell."""
        model = torch_kit.mlp()
        expected = saved(torch_kit, tmp_path, model, precompute_grads=True, index="Flat").explain(X, Y, k=3)
        manifest = json.loads((tmp_path / "explainer.json").read_text())
        for name in ("seal", "gradients", "index_directory"):
            del manifest[name]
        for one in list(tmp_path.iterdir()):
            one.rename(tmp_path / re.sub(r"\.[0-9a-f]{8}", "", one.name))
        old = {"version": 1, "X_train": {"npy": "X_train.npy"}, "Y_train": {"npy": "Y_train.npy"}}
        publish(tmp_path / "explainer.json", manifest | old, replace=True)
        opened = GradientSimilarity.load(tmp_path, model)
        assert_array_equal(opened.explain(X, Y, k=3).scores, expected.scores)
        opened.save(tmp_path)
        assert_array_equal(GradientSimilarity.load(tmp_path, model).explain(X, Y, k=3).scores, expected.scores)
        assert not (tmp_path / "X_train.npy").exists()


class TestRoundTrip:
    @pytest.mark.parametrize("kept", KEPT)
    def test_answers_are_equal(self, kit, tmp_path, kept):
        explainer = saved(kit, tmp_path / "saved", **KEPT[kept])
        expected = explainer.explain(QUERIES, LABELS)
        del explainer
        again = GradientSimilarity.load(tmp_path / "saved", kit.mlp())
        found = again.explain(QUERIES, LABELS)
        assert found.meta == expected.meta
        assert list(found.data) == list(expected.data)
        for name, value in expected.data.items():
            assert_array_equal(found.data[name], value, strict=True)
        assert_array_equal(again.X_train, X, strict=True)
        assert_array_equal(again.Y_train, Y, strict=True)

    @pytest.mark.parametrize("kept", KEPT)
    def test_no_pickle(self, kit, tmp_path, kept):
        saved(kit, tmp_path / "saved", **KEPT[kept])
        assert_no_pickle(tmp_path / "saved")

    def test_what_was_kept_is_not_computed_again(self, kit, tmp_path, monkeypatch):
        before = saved(kit, tmp_path / "saved", precompute_grads=True, index="Flat")
        monkeypatch.setattr(gradindex, "build", None)
        again = GradientSimilarity.load(tmp_path / "saved", kit.mlp())
        assert_array_equal(again.grad_X_train, before.grad_X_train, strict=True)
        assert len(again.index) == 12

    @pytest.mark.parametrize("sim_fn", KERNELS)
    def test_options(self, kit, tmp_path, sim_fn):
        options = {
            "task": "regression",
            "precompute_grads": True,
            "verbose": False,
            "index": "SQ8",
            "sketch": gradindex.CountSketch(64),
            "seed": 7,
            "batch_size": 5,
            "parameters": "last_layer",
            "eps": 1e-3,
        }
        loss = kit.named_loss("mse")
        target = np.ones((12, 3), np.float32)
        explainer = kit.explainer(kit.mlp(), loss, sim_fn, **options).fit(X, target)
        expected = explainer.explain(QUERIES, target[:3], k=4)
        explainer.save(tmp_path / "saved")
        again = GradientSimilarity.load(tmp_path / "saved", kit.mlp())
        for name in ("sim_fn", "task", "backend", "index_factory", "sketch", *list(options)[4:]):
            if name != "index":
                assert getattr(again, name) == getattr(explainer, name), name
        assert_array_equal(again.explain(QUERIES, target[:3], k=4).scores, expected.scores)

    def test_loss_of_ones_own_is_passed_again(self, kit, tmp_path):
        explainer = kit.explainer(kit.mlp(), kit.losses()["scalar"]).fit(X, Y)
        explainer.save(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"pass loss_fn="):
            GradientSimilarity.load(tmp_path / "saved", kit.mlp())
        again = GradientSimilarity.load(tmp_path / "saved", kit.mlp(), kit.losses()["scalar"])
        assert_array_equal(again.explain(QUERIES).scores, explainer.explain(QUERIES).scores)

    def test_options_of_a_loss(self, kit, tmp_path):
        if kit.name == "pytorch":
            from torch import nn

            loss = nn.CrossEntropyLoss(label_smoothing=0.3)
        else:
            import keras

            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2)
        explainer = kit.explainer(kit.mlp(), loss).fit(X, Y)
        explainer.save(tmp_path / "saved")
        plain = kit.explainer(kit.mlp(), kit.named_loss("classes")).fit(X, Y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an ignored label has a gradient of zero
            found = GradientSimilarity.load(tmp_path / "saved", kit.mlp()).explain(QUERIES, LABELS).scores
            assert_array_equal(found, explainer.explain(QUERIES, LABELS).scores)
        assert not np.allclose(found, plain.explain(QUERIES, LABELS).scores)

    def test_loss_with_tensors_is_passed_again(self, torch_kit, tmp_path):
        import torch

        loss = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
        torch_kit.explainer(torch_kit.mlp(), loss).fit(X, Y).save(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"pass loss_fn="):
            GradientSimilarity.load(tmp_path / "saved", torch_kit.mlp())

    def test_functional_loss(self, torch_kit, tmp_path):
        from torch.nn import functional

        explainer = torch_kit.explainer(torch_kit.mlp(), functional.cross_entropy).fit(X, Y)
        explainer.save(tmp_path / "saved")
        again = GradientSimilarity.load(tmp_path / "saved", torch_kit.mlp())
        assert again.loss_fn is functional.cross_entropy

    def test_gradindex_load_opens_explainers_too(self, kit, tmp_path):
        saved(kit, tmp_path / "saved")
        assert isinstance(gradindex.load(tmp_path / "saved", kit.mlp()), GradientSimilarity)

    def test_saving_again_replaces(self, kit, tmp_path):
        explainer = saved(kit, tmp_path / "saved", index="Flat")
        explainer.fit(X[:6], Y[:6]).save(tmp_path / "saved")
        again = GradientSimilarity.load(tmp_path / "saved", kit.mlp())
        assert len(again.index) == len(again.X_train) == 6
        again.save(tmp_path / "saved")  # its own files are the source
        assert len(GradientSimilarity.load(tmp_path / "saved", kit.mlp()).index) == 6


class TestKindsOfData:
    def round_trip(self, kit, path, explainer, model):
        explainer.save(path)
        assert_no_pickle(path)
        return GradientSimilarity.load(path, model)

    @pytest.mark.parametrize("form", [list, "tensor", lambda x: [row.tolist() for row in x]])
    def test_lists_and_tensors(self, kit, tmp_path, form):
        form = kit.tensor if form == "tensor" else form
        explainer = kit.explainer(kit.mlp(), kit.named_loss("classes")).fit(form(X), form(Y))
        again = self.round_trip(kit, tmp_path / "saved", explainer, kit.mlp())
        expected, found = explainer.explain(QUERIES, LABELS), again.explain(QUERIES, LABELS)
        assert_array_equal(found.scores, expected.scores)
        assert type(found.most_similar) is type(expected.most_similar)
        assert_array_equal(found.most_similar, expected.most_similar)

    @pytest.mark.parametrize("as_dict", [True, False])
    def test_several_inputs(self, kit, tmp_path, as_dict):
        x = {"a": X, "b": X[:, :2]} if as_dict else (X, X[:, :2])
        explainer = kit.explainer(kit.two_inputs(as_dict), kit.named_loss("classes")).fit(x, Y)
        again = self.round_trip(kit, tmp_path / "saved", explainer, kit.two_inputs(as_dict))
        assert type(again.X_train) is type(x)
        assert_array_equal(again.explain(x, Y).scores, explainer.explain(x, Y).scores)

    def test_names_of_inputs_need_not_be_file_names(self, kit, tmp_path):
        names = {"a/b": X, "../c": X[:, :2], "": Y}
        from gradindex.interop.alibi_saved import _load_tree, _save_tree

        structure = json.loads(json.dumps(_save_tree(tmp_path, "X_train", names)))
        found = _load_tree(tmp_path, "X_train", structure)
        assert list(found) == list(names)
        assert_array_equal(found["../c"], X[:, :2])
        assert all(path.parent == tmp_path for path in tmp_path.rglob("*"))

    def test_objects(self, torch_kit, tmp_path):
        objects = [dict(zip("abcd", row.tolist(), strict=True)) for row in X]
        model, _ = torch_kit.recorder()
        explainer = torch_kit.explainer(model, torch_kit.named_loss("classes")).fit(objects, Y)
        again = self.round_trip(torch_kit, tmp_path / "saved", explainer, model)
        assert again.X_train == objects
        assert_array_equal(again.explain(objects[0], Y[0]).scores, explainer.explain(objects[0], Y[0]).scores)

    def test_objects_that_json_cannot_hold(self, torch_kit, tmp_path):
        model, _ = torch_kit.recorder()
        explainer = torch_kit.explainer(model, torch_kit.loss).fit([{"a": object()}] * 12, Y)
        with pytest.raises(TypeError, match=r"Cannot save X_train: .*JSON"):
            explainer.save(tmp_path / "saved")
        with pytest.raises(FileNotFoundError, match="holds no explainer"):
            GradientSimilarity.load(tmp_path / "saved", model)


class TestRefusals:
    def test_before_fit(self, kit, tmp_path):
        with pytest.raises(ValueError, match="call fit first"):
            kit.explainer(kit.mlp(), kit.loss).save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_nothing_there(self, kit, tmp_path):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} holds no explainer")):
            GradientSimilarity.load(tmp_path, kit.mlp())

    def test_a_directory_of_something_else_is_left_alone(self, kit, tmp_path):
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="not empty"):
            saved(kit, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("kept", ["gradients", "index"])
    def test_another_model_is_named_by_parameter(self, kit, tmp_path, kept):
        saved(kit, tmp_path / "saved", **KEPT[kept])
        other = kit.mlp()
        name = change_last_bias(kit, other)
        with pytest.raises(MismatchError, match=re.escape(f"parameter {name!r} has other values")):
            GradientSimilarity.load(tmp_path / "saved", other)

    @pytest.mark.parametrize("kept", ["gradients", "index"])
    def test_another_selection_of_parameters_is_refused(self, kit, tmp_path, kept):
        saved(kit, tmp_path / "saved", **KEPT[kept])
        other = kit.mlp()
        kit.freeze(other)
        with warnings.catch_warnings(), pytest.raises(MismatchError, match=r"parameter '.*' is missing"):
            warnings.simplefilter("ignore", UserWarning)  # two parameters are frozen
            GradientSimilarity.load(tmp_path / "saved", other)

    def test_another_model_is_welcome_where_nothing_was_kept(self, kit, tmp_path):
        saved(kit, tmp_path / "saved")
        other = kit.mlp()
        change_last_bias(kit, other)
        expected = kit.explainer(other, kit.named_loss("classes"), "grad_cos").fit(X, Y).explain(QUERIES, LABELS)
        found = GradientSimilarity.load(tmp_path / "saved", other).explain(QUERIES, LABELS)
        assert_array_equal(found.scores, expected.scores)

    @pytest.mark.parametrize("name", ["explainer*.json", "X_train*.npy", "Y_train*.npy", "gradients*.npy"])
    @pytest.mark.parametrize("how", ["cut", "empty", "gone"])
    def test_damage_names_the_file(self, torch_kit, tmp_path, name, how):
        saved(torch_kit, tmp_path, precompute_grads=True)
        (path,) = tmp_path.glob(name)
        whole = path.read_bytes()
        path.unlink() if how == "gone" else path.write_bytes(whole[: len(whole) // 2] if how == "cut" else b"")
        expected = FileNotFoundError if (name, how) == ("explainer*.json", "gone") else DamagedIndexError
        with pytest.raises(expected, match=re.escape(path.name)):
            GradientSimilarity.load(tmp_path, torch_kit.mlp())

    def test_a_pickled_array_is_refused(self, torch_kit, tmp_path):
        saved(torch_kit, tmp_path)
        (path,) = tmp_path.glob("X_train*.npy")
        np.save(path, np.array([object()] * 12), allow_pickle=True)
        with pytest.raises(DamagedIndexError, match=r"X_train.*\.npy is damaged"):
            GradientSimilarity.load(tmp_path, torch_kit.mlp())

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("version", 99, "format version 1"),
            ("format", "something else", "format version 1"),
            ("loss", {"name": "os:system"}, "not a loss that may be loaded"),
            ("loss", {"name": "torch.nn.functional:cross_entropy:evil"}, "not a loss that may be loaded"),
            ("X_train", {"npy": "../../etc/passwd"}, "is damaged"),
            ("X_train", {"npy": "Y_train.npy"}, "is damaged"),
            ("X_train", [], "is damaged"),
            ("gradients", "../gradients.npy", "not a plain file name"),
        ],
    )
    def test_a_manifest_that_asks_for_more_is_refused(self, torch_kit, tmp_path, key, value, words):
        saved(torch_kit, tmp_path, precompute_grads=True)
        manifest = json.loads((tmp_path / "explainer.json").read_text())
        del manifest["seal"]
        manifest[key] = value
        publish(tmp_path / "explainer.json", manifest, replace=True)  # sealed anew: only its contents give it away
        with pytest.raises(DamagedIndexError, match=words):
            GradientSimilarity.load(tmp_path, torch_kit.mlp())


def change_last_bias(kit, model):
    """Add to the bias of the last layer; return its name."""
    if kit.name == "pytorch":
        import torch

        with torch.no_grad():
            model[2].bias += 1
        return "2.bias"
    bias = model.layers[-1].bias
    bias.assign(bias + 1)
    return bias.path
