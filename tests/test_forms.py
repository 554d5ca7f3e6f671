"""Samples in the forms that people have them in: each gives what plain arrays give, or an error that names it.

The right values are written out: of a linear model with softmax, the gradient of a sample is the outer product of
p − e_y and its input with a 1 behind it.
"""

import collections
import dataclasses
import types
import typing

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import gradindex
from gradindex.data import samples as forms
from gradindex.data.chain import Chain
from gradindex.data.dataset_types import as_source
from gradindex.data.source import length, map_leaves, take_rows
from tests.conftest import FRAMEWORKS

N, D, C = 12, 5, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = np.arange(N) % C
PARTS = {"a": X[:, :3], "b": X[:, 3:]}
W, BIAS = RNG.normal(size=(D, C)).astype(np.float32), RNG.normal(size=C).astype(np.float32)


class Pair(typing.NamedTuple):
    x: typing.Any
    y: typing.Any


class Parts(typing.NamedTuple):
    a: typing.Any
    b: typing.Any


@dataclasses.dataclass
class Record:
    x: typing.Any
    y: typing.Any


class Bag(collections.abc.Mapping):
    """A mapping that is nothing else."""

    def __init__(self, entries):
        self.entries = dict(entries)

    def __getitem__(self, key):
        return self.entries[key]

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


class Made(torch.utils.data.Dataset):
    """A dataset whose samples a function makes."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.make(i)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class SizedStream(Stream):
    def __len__(self):
        return N


class Linear(torch.nn.Module):
    """Takes its input whole or in two parts."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(D, C)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(W.T))
            self.layer.bias.copy_(torch.tensor(BIAS))

    def forward(self, a, b=None):
        a, b = (a.a, a.b) if isinstance(a, Parts) else (a, b)
        return self.layer(a if b is None else torch.cat([a, b], 1))


class TwoParts(Linear):
    def forward(self, a, b):
        return self.layer(torch.cat([a, b], 1))


def keras_linear(parts):
    keras = pytest.importorskip("keras")
    inputs = {name: keras.layers.Input((value.shape[1],), name=name) for name, value in PARTS.items()}
    whole = keras.layers.Concatenate()(list(inputs.values())) if parts else keras.layers.Input((D,))
    layer = keras.layers.Dense(C)
    model = keras.Model(inputs if parts else whole, layer(whole))
    layer.set_weights([W, BIAS])
    return model


def gradients(x=X, y=Y):
    logits = x @ W + BIAS
    p = np.exp(logits - logits.max(1, keepdims=True))
    left = p / p.sum(1, keepdims=True) - np.eye(C)[y]
    right = np.hstack([x, np.ones((len(x), 1))])
    return (left[:, :, None] * right[:, None]).reshape(len(x), -1)


NORMS = np.linalg.norm(gradients(), axis=1)
UNIT = gradients() / NORMS[:, None]
COSINES = -np.sort(-UNIT[:3] @ UNIT.T, axis=1)[:, :4]


class Setting:
    """One framework's jobs over any data, all with the same engine, and an index of plain arrays to ask."""

    def __init__(self, framework, parts, folder):
        if framework == "pytorch":
            self.model, self.loss = (TwoParts if parts else Linear)(), torch.nn.CrossEntropyLoss()
        else:
            keras = pytest.importorskip("keras")
            self.model = keras_linear(parts)
            self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.framework = framework
        plain = gradindex.Job(self.model, self.loss, (PARTS if parts else X, Y))
        self.engine = plain.engine
        self.index = gradindex.build(plain, folder / "index", progress=False)

    def job(self, dataset):
        job = gradindex.Job(self.model, self.loss, dataset)
        job.__dict__["engine"] = self.engine
        return job

    def norms(self, dataset):
        return np.concatenate([block.norms for block in gradindex.embed(self.job(dataset))])

    def explainer(self):
        return gradindex.GradientSimilarity(self.model, self.loss, "grad_cos", backend=self.framework)


@pytest.fixture(scope="module", params=FRAMEWORKS)
def whole(request, tmp_path_factory):
    return Setting(request.param, False, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module", params=FRAMEWORKS)
def parts(request, tmp_path_factory):
    return Setting(request.param, True, tmp_path_factory.mktemp("parts"))


def objects(rows):
    found = np.empty(len(rows), object)
    found[:] = list(rows)
    return found


def read_only(x):
    return np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)


def backwards(x):
    """The same numbers, of which every axis has negative strides."""
    flipped = np.flip(np.ascontiguousarray(np.flip(x)))
    assert all(stride < 0 for stride in flipped.strides)
    return flipped


def table(x):
    return pytest.importorskip("pandas").DataFrame(x)


def series(y, **options):
    return pytest.importorskip("pandas").Series(y, **options)


INPUTS = {
    "tensor": torch.tensor,
    "tensor that requires a gradient": lambda x: torch.tensor(x, requires_grad=True),
    "parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "nested tensor": lambda x: torch.nested.nested_tensor(list(map(torch.tensor, x)), layout=torch.jagged),
    "negative strides": backwards,
    "big-endian": lambda x: x.astype(">f4"),
    "long double": lambda x: x.astype(np.longdouble),
    "read-only": read_only,
    "lists": lambda x: x.tolist(),
    "list of arrays": list,
    "list of tensors": lambda x: list(map(torch.tensor, x)),
    "tensors among arrays": lambda x: [torch.tensor(row) if i % 2 else row for i, row in enumerate(x)],
    "lists of scalar tensors": lambda x: [[torch.tensor(v, requires_grad=True) for v in row] for row in x],
    "deque": collections.deque,
    "objects": objects,
    "table of objects": lambda x: x.astype(object),
    "DataFrame": table,
    "masked array without a mask": np.ma.array,
}
LABELS = {
    "tensor": torch.tensor,
    "float tensor that requires a gradient": lambda y: torch.tensor(y, dtype=torch.float32, requires_grad=True),
    "negative strides": backwards,
    "big-endian": lambda y: y.astype(">i4"),
    "read-only": read_only,
    "list": lambda y: y.tolist(),
    "scalar tensors": lambda y: [torch.tensor(int(one)) for one in y],
    "scalars": list,
    "mixed scalars": lambda y: [torch.tensor(int(one)) if i % 2 else int(one) for i, one in enumerate(y)],
    "16 bits": lambda y: y.astype(np.uint16),
    "64 bits unsigned": lambda y: y.astype(np.uint64),
    "objects": lambda y: y.astype(object),
    "Series": series,
    "nullable Series": lambda y: series(y, dtype="Int64"),
}
DATASETS = {
    "named tuple": lambda: Pair(X, Y),
    "named samples": lambda: list(map(Pair, X, Y)),
    "lists [x, y]": lambda: [[x, y] for x, y in zip(X, Y.tolist(), strict=True)],
    "lists [list, y]": lambda: [[x, y] for x, y in zip(X.tolist(), Y.tolist(), strict=True)],
    "lists of tensors": lambda: [[torch.tensor(x), torch.tensor(y)] for x, y in zip(X, Y, strict=True)],
    "deque of samples": lambda: collections.deque(zip(X, Y, strict=True)),
    "dict by position": lambda: dict(enumerate(zip(X, Y, strict=True))),
    "Dataset of lists": lambda: Made(lambda i: [X[i], Y[i]]),
    "stream": SizedStream,
    "loader of a stream": lambda: torch.utils.data.DataLoader(SizedStream(), 4),
    "loader of named samples": lambda: torch.utils.data.DataLoader(Made(lambda i: Pair(X[i], Y[i])), 4),
    "collate function of arrays": lambda: torch.utils.data.DataLoader(
        Made(lambda i: (X[i], Y[i])),
        4,
        collate_fn=lambda s: [backwards(np.stack([x for x, _ in s])), [y for _, y in s]],
    ),
}


class TestForms:
    @pytest.mark.parametrize("form", INPUTS)
    def test_inputs(self, whole, form):
        assert_allclose(whole.norms((INPUTS[form](X), Y)), NORMS, rtol=1e-4)

    @pytest.mark.parametrize("form", LABELS)
    def test_labels(self, whole, form):
        if form.startswith("float") and whole.framework == "pytorch":
            pytest.skip("torch's cross entropy refuses classes that are no integers")
        assert_allclose(whole.norms((X, LABELS[form](Y))), NORMS, rtol=1e-4)

    @pytest.mark.parametrize("form", DATASETS)
    def test_datasets(self, whole, form):
        assert_allclose(whole.norms(DATASETS[form]()), NORMS, rtol=1e-4)

    @pytest.mark.parametrize("form", [*INPUTS, "tuple"])
    def test_queries(self, whole, form):
        x = (INPUTS | {"tuple": tuple})[form](X[:3])
        assert_allclose(whole.index.explain(x, Y[:3], k=4).scores, COSINES, atol=1e-4)

    @pytest.mark.parametrize("form", [*LABELS, "tuple"])
    def test_labels_of_queries(self, whole, form):
        y = (LABELS | {"tuple": lambda y: tuple(y.tolist())})[form](Y[:3])
        assert_allclose(whole.index.explain(X[:3], y, k=4).scores, COSINES, atol=1e-4)

    @pytest.mark.parametrize(("x", "y"), [("negative strides", "big-endian"), ("DataFrame", "Series")])
    def test_explainer(self, whole, x, y):
        explainer = whole.explainer().fit(INPUTS[x](X), LABELS[y](Y))
        found = explainer.explain(INPUTS[x](X[:3]), LABELS[y](Y[:3]), k=4)
        assert_allclose(found.scores, COSINES, atol=1e-4)

    def test_bfloat16(self, whole):
        assert_allclose(whole.norms((torch.tensor(X).bfloat16(), Y)), NORMS, rtol=2e-2)

    def test_memory_mapped_arrays_stay_there(self, whole, tmp_path):
        np.save(tmp_path / "x.npy", X.astype(">f4"))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        source = as_source((mapped, Y))
        assert np.shares_memory(source.x, mapped)
        assert source.take(np.arange(2)).x.dtype.isnative
        assert_allclose(whole.norms(source), NORMS, rtol=1e-4)


def encoding(entries):
    return pytest.importorskip("transformers").BatchEncoding(entries)


MAPPINGS = {
    "dict": dict,
    "UserDict": collections.UserDict,
    "OrderedDict": collections.OrderedDict,
    "ChainMap": lambda entries: collections.ChainMap({"a": entries["a"]}, {"b": entries["b"]}),
    "proxy": types.MappingProxyType,
    "Mapping": Bag,
    "BatchEncoding": encoding,
}


@pytest.mark.parametrize("kind", MAPPINGS)
class TestMappings:
    def samples(self, kind):
        return [(MAPPINGS[kind]({name: part[i] for name, part in PARTS.items()}), Y[i]) for i in range(N)]

    def test_columns(self, parts, kind):
        assert_allclose(parts.norms((MAPPINGS[kind](PARTS), Y)), NORMS, rtol=1e-4)

    @pytest.mark.parametrize("how", ["list", "lists", "Dataset", "DataLoader", "stream"])
    def test_samples(self, parts, kind, how):
        samples = self.samples(kind)
        data = {
            "list": samples,
            "lists": list(map(list, samples)),
            "Dataset": Made(samples.__getitem__),
            "DataLoader": torch.utils.data.DataLoader(Made(samples.__getitem__), 4),
            "stream": dict(enumerate(samples)).values(),
        }[how]
        assert_allclose(parts.norms(data), NORMS, rtol=1e-4)

    def test_queries(self, parts, kind):
        x = MAPPINGS[kind]({name: part[:3] for name, part in PARTS.items()})
        one = MAPPINGS[kind]({name: part[0] for name, part in PARTS.items()})
        several = [x for x, _ in self.samples(kind)[:3]]
        for asked, y, want in ((x, Y[:3], COSINES), (one, Y[0], COSINES[:1]), (several, Y[:3], COSINES)):
            assert_allclose(parts.index.explain(asked, y, k=4).scores, want, atol=1e-4)

    def test_nested_become_dicts(self, kind):
        found = as_source((MAPPINGS[kind]({"a": X, "b": MAPPINGS[kind](PARTS)}), MAPPINGS[kind](PARTS)))
        batch = found.take(np.array([4, 1]))
        assert type(batch.x) is type(batch.x["b"]) is type(batch.y) is dict
        assert_array_equal(batch.x["b"]["b"], PARTS["b"][[4, 1]])


class TestParts:
    def test_explainer(self, parts):
        x = {name: part[:3] for name, part in PARTS.items()}
        found = parts.explainer().fit(Bag(PARTS), Y).explain(collections.UserDict(x), Y[:3], k=4)
        assert_allclose(found.scores, COSINES, atol=1e-4)
        assert_array_equal(found.most_similar["a"], PARTS["a"][found.ordered_indices[:, :5]])

    def test_added_samples(self, tmp_path):
        half = {name: part[:6] for name, part in PARTS.items()}
        rest = collections.UserDict({name: torch.tensor(part[6:]) for name, part in PARTS.items()})
        job = gradindex.Job(TwoParts(), torch.nn.CrossEntropyLoss(), (half, Y[:6]))
        found = gradindex.build(job, tmp_path / "index", progress=False)
        assert found.add((rest, Y[6:])).tolist() == list(range(6, N))
        assert_allclose(found.explain(ids=[0, 1, 2], k=4).scores, COSINES, atol=1e-4)

    def test_named_tuples_reach_the_model(self):
        setting = gradindex.Job(Linear(), torch.nn.CrossEntropyLoss(), (Parts(**PARTS), Y))
        assert isinstance(setting.source.take(np.arange(2)).x, Parts)
        norms = np.concatenate([block.norms for block in gradindex.embed(setting)])
        assert_allclose(norms, NORMS, rtol=1e-4)

    def test_tf_data_of_mappings(self):
        tf = pytest.importorskip("tensorflow")
        for batched in (False, True):
            data = tf.data.Dataset.from_tensor_slices((collections.OrderedDict(PARTS), Y))
            batch = as_source(data.batch(5) if batched else data).take(np.array([7, 2]))
            assert type(batch.x) is dict
            assert_array_equal(batch.x["b"], PARTS["b"][[7, 2]])

    def test_tensors_of_tensorflow(self):
        tf = pytest.importorskip("tensorflow")
        for form in (tf.constant, tf.Variable, tf.RaggedTensor.from_tensor, lambda x: list(map(tf.constant, x))):
            assert_array_equal(as_source((form(X), Y)).take(np.array([7, 2])).x, X[[7, 2]])


def sparse(x):
    return pytest.importorskip("scipy.sparse").csr_matrix(x)


def structured():
    found = np.zeros(N, [("x", "f4", (D,)), ("y", "i8")])
    found["x"], found["y"] = X, Y
    return found


def some_none(values):
    return [None if i in (3, 10) else one for i, one in enumerate(values)]


TEXTS = np.array(["bus", "opel", "van"])[Y]
# What the data is, and the words of the error.
REFUSED = {
    "dict": (
        lambda: {"x": X, "y": Y},
        TypeError,
        r"type dict.*\(X, Y\).*keys are 'x', 'y'.*one entry, if that is a split",
    ),
    "UserDict": (lambda: collections.UserDict(x=X, y=Y), TypeError, r"dataset of type UserDict.*keys are 'x', 'y'"),
    "DataFrame": (lambda: table(X), TypeError, r"type DataFrame.*\(table\[inputs\], table\[label\]\)"),
    "Series": (lambda: series(Y), TypeError, "dataset of type Series"),
    "set": (lambda: set(Y.tolist()), TypeError, "dataset of type set"),
    "text": (lambda: "digits", TypeError, "dataset of type str"),
    "dataclass": (lambda: Record(X, Y), TypeError, "dataset of type Record"),
    "generator": (
        lambda: (pair for pair in zip(X, Y, strict=True)),
        TypeError,
        "generator has no length.*a list of its samples",
    ),
    "stream without a length": (Stream, TypeError, "Stream has no length"),
    "loader without batches": (
        lambda: torch.utils.data.DataLoader(Made(lambda i: (X[i], Y[i])), None),
        TypeError,
        "makes no batches.*give its dataset",
    ),
    "loader that loses samples": (
        lambda: torch.utils.data.DataLoader(Made(lambda i: (X[i], Y[i])), 4, collate_fn=lambda s: (X[:3], Y[:3])),
        ValueError,
        r"collate function made \[3\] entries for 8 samples",
    ),
    "samples by name": (
        lambda: Made(lambda i: {}[i]),
        TypeError,
        r"dataset \(Made\) of 12 samples fails at \[0\], KeyError: 0",
    ),
    "list [x, y]": (lambda: [X, Y], ValueError, r"no labels.*\(X, Y\), a tuple of two parts.*A list such as \[X, Y\]"),
    "(x, y, w)": (lambda: (X, Y, Y), ValueError, "no labels.*a tuple of three parts one of three"),
    "x": (lambda: X, ValueError, r"no labels.*an array of shape \(5,\)"),
    "tensor": (lambda: torch.tensor(X), ValueError, r"no labels.*an array of shape \(5,\)"),
    "samples of dicts": (
        lambda: [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],
        ValueError,
        r"no labels.*a dict of \['x', 'y'\]",
    ),
    "samples of dataclasses": (lambda: list(map(Record, X, Y)), ValueError, "no labels.*a list of Record"),
    "two texts": (lambda: ["first", "second"], ValueError, "no labels.*a list of str"),
    "samples of three parts": (lambda: list(zip(X, Y, Y, strict=True)), ValueError, "got 3 parts"),
    "samples of other parts": (
        lambda: [({"a" if i else "b": x}, 0) for i, x in enumerate(X)],
        ValueError,
        r"a dict of \['a'\], but a dict of \['b'\] in others",
    ),
    "samples of fewer parts": (
        lambda: [(x, 0) if i else (x,) for i, x in enumerate(X)],
        ValueError,
        "a tuple of 2, but a tuple of 1",
    ),
    "None": (lambda: (None, Y), ValueError, "X is None: expected an array"),
    "None in a part": (
        lambda: ({"a": X, "token_type_ids": None}, Y),
        ValueError,
        r"X\['token_type_ids'\] is None.*leave this part out",
    ),
    "None in a part of labels": (lambda: (X, {"boxes": Y, "masks": None}), ValueError, r"Y\['masks'\] is None"),
    "None in a tuple": (lambda: ((X, None), Y), ValueError, r"X\[1\] is None"),
    "None in samples": (
        lambda: [({"a": x, "types": None}, y) for x, y in zip(X, Y, strict=True)],
        ValueError,
        r"data of samples \[0, 1, 2.*is None \(in X\['types'\]\).*Leave X\['types'\] out",
    ),
    "None among inputs": (
        lambda: (some_none(X), Y),
        ValueError,
        r"data of samples \[3, 10\] is None.*leave these samples out",
    ),
    "None among labels": (lambda: (X, some_none(Y.tolist())), ValueError, r"label of samples \[3, 10\] is None"),
    "None among samples' labels": (
        lambda: list(zip(X, some_none(Y), strict=True)),
        ValueError,
        r"label of samples \[3\] is None",
    ),
    "no labels": (lambda: (X, [None] * N), TypeError, "loss does not take the label None"),
    "texts as labels": (
        lambda: (X, TEXTS),
        TypeError,
        "loss does not take the label 'bus': expected numbers.*np.unique",
    ),
    "Series of texts": (lambda: (X, series(TEXTS)), TypeError, "loss does not take the label 'bus'"),
    "huge labels": (
        lambda: (X, [2**70] * N),
        ValueError,
        "Y holds integers of more than 64 bits, such as 1180591620717411303424",
    ),
    "dates": (
        lambda: (X, np.arange(N).astype("M8[D]")),
        TypeError,
        r"Y holds entries of dtype datetime64\[D\]: expected numbers",
    ),
    "structured array": (structured, TypeError, "X holds entries of dtype.*Give its fields 'x', 'y' by name"),
    "table with texts": (
        lambda: (table(X).assign(kind=TEXTS), Y),
        TypeError,
        "X holds entries of dtype object.*It holds float, str",
    ),
    "sparse tensor": (
        lambda: (torch.tensor(X).to_sparse(), Y),
        TypeError,
        r"X is a tensor of layout torch.sparse_coo.*to_dense\(\)",
    ),
    "sparse matrix": (lambda: (sparse(X), Y), TypeError, r"X is a csr_matrix: expected an array.*toarray\(\)"),
    "tensor without values": (
        lambda: (torch.empty(N, D, device="meta"), Y),
        ValueError,
        "X is a tensor on the device 'meta'",
    ),
    "masked array": (lambda: (np.ma.masked_where(X > 1, X), Y), ValueError, "X has masked entries"),
    "generator of inputs": (lambda: ((x for x in X), Y), TypeError, "X is a generator: expected an array.*Give a list"),
    "set of labels": (lambda: (X, set(Y.tolist())), TypeError, "Y is a set: expected an array"),
    "text as inputs": (lambda: ("digits", Y), TypeError, "X is a str: expected an array"),
    "single number": (lambda: (np.array(1.0), Y), ValueError, "X is a single value: expected a first axis"),
    "one label": (lambda: (X, 3), ValueError, "Y is a single value: expected a first axis"),
    "no parts": (lambda: ({}, Y), ValueError, r"X is a dict of \[\] without any part"),
    "other lengths": (
        lambda: ({"a": X, "b": X[:3]}, Y),
        ValueError,
        r"numbers of samples: \[3, 12\] \(X\['a'\]: 12, X\['b'\]: 3\)",
    ),
    "nothing": (list, ValueError, "dataset is empty"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_dataset_is_named(whole, form):
    make, kind, words = REFUSED[form]
    with pytest.raises(kind, match=f"(?s){words}"):
        whole.norms(make())


@pytest.mark.parametrize("form", ["None among inputs", "None among labels", "sparse tensor", "None", "set of labels"])
def test_an_explainer_names_them_too(whole, form):
    make, kind, words = REFUSED[form]
    with pytest.raises(kind, match=f"(?s){words}"):
        whole.explainer().fit(*make())


QUERIES = {
    "texts": ((["a", "b"], 0), r"X is a list of str but the training data is a ndarray. Give queries of shape \(5,\)"),
    "None": (([X[0], None, X[2]], 0), r"X is None for queries \[1\]: expected one for every query"),
    "dict": (({"x": X[:3]}, 0), r"X is a dict of \['x'\] but the training data is a ndarray"),
    "two parts": (((X[:3], Y[:3]), 0), "X is a list of ndarray but the training data is a ndarray"),
    "sparse": ((torch.tensor(X[:3]).to_sparse(), 0), "X is a tensor of layout torch.sparse_coo"),
    "generator": (((x for x in X), 0), "X is a generator"),
    "no queries": ((X[:0], 0), "X is empty"),
    "text labels": ((X[:3], TEXTS[:3]), "Y is a list of str but the training data is a ndarray"),
    "a text": ((X[:3], "bus"), "Y is a str: expected an array"),
    "NaN": ((X[:3], [0, np.nan, 1]), r"label \(queries\) of samples \[1\] holds NaN"),
    "None labels": ((X[:3], [0, None, 1]), r"Y is None for queries \[1\]"),
}


@pytest.mark.parametrize("form", QUERIES)
def test_what_is_no_query_is_named(whole, form):
    (x, y), words = QUERIES[form]
    with pytest.raises((TypeError, ValueError), match=words):
        whole.index.explain(x, y, k=2)


def test_queries_of_other_parts(parts):
    x = {name: part[:3] for name, part in PARTS.items()}
    words = r"X is a dict of \['a', 'b', 'c'\] but the training data is a dict of \['a', 'b'\]. Give queries like that"
    with pytest.raises(ValueError, match=words):
        parts.index.explain(collections.UserDict(x, c=X[:3]), Y[:3])
    with pytest.raises(ValueError, match=r"X\['b'\] is None: expected"):
        parts.index.explain({**x, "b": None}, Y[:3])


def test_a_dict_of_other_names_than_the_models():
    job = gradindex.Job(TwoParts(), torch.nn.CrossEntropyLoss(), ({"a": X, "c": X}, Y))
    with pytest.raises(TypeError, match=r"model takes a, b, but the input is a dict of \['a', 'c'\]"):
        next(gradindex.embed(job))


def test_a_loss_may_take_texts():
    def loss(out, names):
        return torch.nn.functional.cross_entropy(out, torch.tensor([["bus", "opel", "van"].index(n) for n in names]))

    norms = np.concatenate([block.norms for block in gradindex.embed(gradindex.Job(Linear(), loss, (X, TEXTS)))])
    assert_allclose(norms, NORMS, rtol=1e-4)


class TestObjects:
    """Texts, and arrays that differ in length, as queries."""

    def example(self, x):
        return as_source((x, [0] * len(x))).take(np.arange(len(x)))

    @pytest.mark.parametrize("asked", [["a", "b"], ("a", "b"), np.array(["a", "b"]), objects(["a", "b"])])
    def test_texts(self, asked):
        from gradindex.compute.queries import match_shapes

        assert match_shapes(asked, None, self.example(["x", "yz"]))[0] == ["a", "b"]
        assert match_shapes("ab", None, self.example(["x", "yz"]))[0] == ["ab"]
        with pytest.raises(ValueError, match=r"X is None for queries \[1\]"):
            match_shapes(["a", None], None, self.example(["x", "yz"]))

    def test_several_lengths(self):
        from gradindex.compute.queries import match_shapes

        example = self.example([[1, 2], [3]])
        for asked, want in (
            ([1, 2, 3], [[1, 2, 3]]),
            ([[1, 2], [3]], [[1, 2], [3]]),
            (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
            (torch.tensor([5]), [[5]]),
            ((np.array([1]), np.array([2, 3])), [[1], [2, 3]]),
        ):
            assert [one.tolist() for one in match_shapes(asked, None, example)[0]] == want
        for asked, words in (
            (3, "a ndarray"),
            ({"ids": [1]}, "a dict of"),
            (["a"], "a str"),
            (np.ones((1, 2, 3)), "a ndarray"),
        ):
            with pytest.raises(ValueError, match=f"X holds {words}.*arrays with 1 axes"):
                match_shapes(asked, None, example)


class TestTrees:
    def test_lists_of_two_numbers_are_no_pairs(self):
        assert not any(map(forms.is_pair, [[1, 2.0], [[1], [2]], [1], [X, Y, Y], (X, 1), "ab"]))
        assert all(map(forms.is_pair, [[X, 1], [[1.0, 2.0], 1], ["text", 0], [{"a": X}, 1]]))

    def test_rows_of_negative_strides(self):
        found = take_rows(backwards(X), slice(2, 5))
        assert_array_equal(found, X[2:5])
        assert all(stride > 0 for stride in found.strides)

    def test_chains_keep_tensors_and_refuse_other_parts(self):
        both = Chain([as_source((torch.tensor(X).bfloat16(), Y)), as_source((torch.tensor(X).bfloat16(), Y))])
        assert both.take(np.array([13, 0])).x.dtype == torch.bfloat16
        mixed = Chain([as_source((torch.tensor(X), Y)), as_source((X, Y))])
        assert_array_equal(mixed.take(np.array([13, 2])).x, X[[1, 2]])
        other = Chain([as_source((PARTS, Y)), as_source((X, Y))])
        with pytest.raises(ValueError, match=r"Some samples are a dict of \['a', 'b'\], others one array or list"):
            other.take(np.array([0, 13]))

    def test_tensors_lose_their_history_and_mappings_their_kind(self):
        source = as_source((Bag({"a": torch.tensor(X, requires_grad=True)}), Y))
        assert not source.take(np.arange(2)).x["a"].requires_grad
        assert map_leaves(len, Bag(PARTS)) == {"a": N, "b": N}

    def test_length_of_a_single_value(self):
        with pytest.raises(ValueError, match=r"The input\['a'\] is a single value"):
            length({"a": np.array(3)})
