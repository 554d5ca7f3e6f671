"""Every default stands once: what commands, service and page take by default is what the library's functions do."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import gradindex
from gradindex import defaults, report
from gradindex import serve as service
from gradindex.cli import evaluate, influence, plan, serve
from gradindex.cli import index_commands as commands
from gradindex.cli import report as report_command
from gradindex.cli import select as select_command
from gradindex.evaluation import evaluate as run_evaluation
from gradindex.influence.density import DensityInfluence
from gradindex.influence.labels import label_disagreement
from gradindex.interop.sklearn import GradientNeighborsTransformer
from gradindex.lifecycle.measure import measure
from gradindex.lifecycle.options import BuildOptions
from gradindex.relevance.base import Metric, Options
from gradindex.search import audit, select, tuning
from gradindex.search.options import SearchOptions
from gradindex.store import Store

PACKAGE = Path(gradindex.__file__).parent


def defaults_of(function):
    """Return the defaults of a function's parameters, or of a dataclass's fields."""
    found = inspect.signature(function).parameters.items()
    return {name: one.default for name, one in found if one.default is not inspect.Parameter.empty}


def agree(one, other):
    """Compare the defaults of the parameters that two functions share; return their names."""
    one, other = defaults_of(one), defaults_of(other)
    shared = set(one) & set(other) - {"tests"}  # the command leaves out the test that trains a model on merged classes
    different = {name: (one[name], other[name]) for name in shared if one[name] != other[name]}
    assert different == {}
    return shared


@pytest.mark.parametrize(
    ("command", "function", "least"),
    [
        (commands.build, BuildOptions, {"index", "seed", "batch_size", "overwrite", "index_memory", "shard_rows"}),
        (commands.explain, SearchOptions, {"k", "kernel", "rerank", "recall", "certify", "max_checks"}),
        (select_command.select, gradindex.Index.select, {"budget", "by", "kernel", "hidden", "where"}),
        (gradindex.Index.select, select.select, {"budget", "by", "kernel", "hidden", "where"}),
        (commands.verify, gradindex.Index.verify, {"queries", "k", "rerank", "seed", "max_seconds"}),
        (commands.verify, audit.verify, {"queries", "seed", "max_seconds"}),
        (commands.tune, gradindex.Index.tune, {"queries", "k", "seed"}),
        (gradindex.Index.tune, tuning.tune, {"queries", "k", "seed", "candidates"}),
        (influence.self_influence, gradindex.Index.self_influence, {"top"}),
        (plan.plan, measure, {"seconds"}),
        (plan.plan, gradindex.CountSketch, {"dim"}),
        (evaluate.evaluate, run_evaluation, {"repeats", "k", "seed", "top"}),
        (evaluate.evaluate, Options, {"fisher", "solver", "damping", "seed"}),
        (report_command.report, report.report, {"k", "top"}),
    ],
)
def test_a_command_takes_what_the_library_takes(command, function, least):
    assert least <= agree(command, function)


def test_the_service_is_limited_as_its_command_says():
    assert agree(serve.serve, service.Settings) >= {
        "max_body",
        "max_queries",
        "max_k",
        "max_batch",
        "max_waiting",
        "timeout",
    }
    assert defaults_of(serve.serve)["host"] == defaults_of(service.serve)["host"]


def test_the_service_and_its_page_ask_as_python_does():
    pytest.importorskip("pydantic")
    from gradindex.serve.models import ExplainRequest, SearchRequest

    fields = {field.name: field.default for field in dataclasses.fields(SearchOptions)}
    asked = {name: one.default for name, one in ExplainRequest.model_fields.items() if name in fields}
    assert asked == {name: fields[name] for name in ("k", "kernel", "rerank", "certify", "max_checks", "recall")}
    assert SearchRequest.model_fields["k"].default == defaults.NEIGHBOURS
    page = PACKAGE / "serve" / "static"
    assert re.findall(r'id="k"[^>]*value="(\d+)"', (page / "index.html").read_text()) == [str(defaults.NEIGHBOURS)]
    assert re.findall(r"rerank\W+(\d+)", (page / "app.js").read_text()) == ["0"]  # else it leaves that to the service


def test_the_library_agrees_with_itself():
    for function in (gradindex.Index.search, label_disagreement, DensityInfluence.top, Metric.top):
        assert defaults_of(function)["k"] == defaults.NEIGHBOURS == SearchOptions().k
    for function in (gradindex.GradientSimilarity.explain, GradientNeighborsTransformer, gradindex.Index.verify):
        assert defaults_of(function)["rerank"] == defaults.RERANK == SearchOptions().rerank
    for function in (gradindex.embed, gradindex.GradientSimilarity, gradindex.index_store, measure):
        assert defaults_of(function)["seed"] == defaults.SEED == BuildOptions().seed
    assert defaults_of(gradindex.index_store)["index"] == BuildOptions().index
    assert defaults_of(Store.blocks)["size"] == defaults.BLOCK_ROWS


def literals(tree):
    """Yield (name, value, line) of defaults that are written as numbers, in signatures and dataclasses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            plain = node.args.posonlyargs + node.args.args
            pairs = list(zip(plain[len(plain) - len(node.args.defaults) :], node.args.defaults, strict=True))
            pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
            found = [(argument.arg, default) for argument, default in pairs]
        elif isinstance(node, ast.ClassDef):
            found = [(one.target.id, one.value) for one in node.body if isinstance(one, ast.AnnAssign)]
        else:
            continue
        yield from ((name, one.value, one.lineno) for name, one in found if isinstance(one, ast.Constant))


def test_no_shared_default_is_written_a_second_time():
    names = {"rerank", "seed", "landmarks", "dims", "residual", "repeats", "fisher", "solver"}
    pairs = {("k", defaults.NEIGHBOURS), ("queries", defaults.QUERIES), ("dim", defaults.SKETCH_DIM)}
    written = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name, value, line in literals(ast.parse(text)):
            if (name in names and value is not None and value is not True) or (name, value) in pairs:
                written.append(f"{path.name}:{line} {name}={value!r}")
        if path.name != "defaults.py" and re.search(rf"\b{defaults.BLOCK_ROWS}\b", text):
            written.append(f"{path.name}: {defaults.BLOCK_ROWS}")
    assert written == []
    sample = ast.parse("class A:\n    seed: int = 0\ndef f(x, rerank=50, *, k=10): ...")
    assert [one[:2] for one in literals(sample)] == [("seed", 0), ("rerank", 50), ("k", 10)]


def test_what_is_given_takes_the_place_of_options():
    options = defaults.with_given(SearchOptions(k=3, rerank=7), rerank=0, kernel=None, certify=True)
    assert options == SearchOptions(k=3, rerank=0, certify=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.k = 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a positive integer, got 0"),
        ({"k": 2.5}, r"k must be a positive integer, got 2\.5"),
        ({"rerank": -1}, "rerank must be 0 or more, got -1"),
        ({"max_checks": 20}, "max_checks limits a proof"),
        ({"certify": True, "max_checks": 9}, "max_checks must be an integer of k = 10 or more, got 9"),
    ],
)
def test_options_of_a_search_are_checked_where_they_are_made(options, message):
    with pytest.raises(ValueError, match=message):
        SearchOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"shard_rows": 1.5}, r"shard_rows must be a positive integer, got 1\.5"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
    ],
)
def test_options_of_a_build_are_checked_where_they_are_made(options, message):
    with pytest.raises(ValueError, match=message):
        BuildOptions(**options)


def test_an_index_is_built_and_asked_with_options(digits_index):
    index = digits_index
    one = index.explain(ids=[1, 2], options=SearchOptions(k=3, kernel="grad_dot", rerank=0))
    other = index.explain(ids=[1, 2], k=3, kernel="grad_dot", rerank=0)
    assert one.to_json() == other.to_json()
    assert one.ordered_indices.shape == (2, 3)
    mixed = index.explain(ids=[1, 2], options=SearchOptions(k=3, kernel="grad_dot"), k=2)
    assert mixed.meta["params"]["kernel"] == "grad_dot"
    assert mixed.ordered_indices.shape == (2, 2)
    with pytest.raises(ValueError, match="k is 1000, but there are only"):
        index.explain(ids=[1], options=SearchOptions(k=1000))


@pytest.fixture
def digits_index(tmp_path):
    from tests.jobs import digits_job

    options = BuildOptions(sketch=gradindex.CountSketch(64), shard_rows=100, progress=False)
    index = gradindex.build(digits_job(), tmp_path / "i", options=options, seed=3)
    assert (index.store.header.seed, index.store.header.dim, index.store.header.shard_rows) == (3, 64, 100)
    return index
