"""Old paths: those that documents name, and those that stand in objects pickled by earlier versions."""

import pickle
import subprocess
import sys
from importlib import import_module

import pytest

from gradindex import _moved

PICKLED = {
    "gradindex.batches": "ColumnSource",
    "gradindex.chain": "Chain",
    "gradindex.cli.index": "build",
    "gradindex.data.forms": "rebuilt",
    "gradindex.data.reading": "as_source",
    "gradindex.distributed.rows": "ClusterRows",
    "gradindex.embedding": "Block",
    "gradindex.evaluation.quanda_adapter": "GradindexExplainer",
    "gradindex.explainer": "GradientSimilarity",
    "gradindex.exporting": "query_vectors",
    "gradindex.hugging_face": "_Dataset",
    "gradindex.influence.checkpoints": "Checkpoint",
    "gradindex.influence.losses_tensorflow": "WithLoss",
    "gradindex.influence.losses_torch": "WithLoss",
    "gradindex.influence.preconditioner": "read_preconditioner",
    "gradindex.influence.tracin": "TracInEngine",
    "gradindex.neighbors": "GradientNeighborsTransformer",
    "gradindex.plan": "Rates",
    "gradindex.precision": "InDouble",
    "gradindex.relevance.rows": "MetricRows",
    "gradindex.relevance.space": "Space",
    "gradindex.rendering": "Rendered",
    "gradindex.search.rows": "LocalRows",
    "gradindex.sketch.rows": "normalise",
    "gradindex.store.publish": "Header",
    "gradindex.store.table": "Columns",
    "gradindex.summary": "BuildSummary",
    "gradindex.verify": "Audit",
}
NEEDED = {"_tensorflow": "tensorflow", ".quanda_adapter": "quanda"}  # by modules whose names end so
DOCUMENTED = {
    "gradindex.demo": ("torch_job", "gradindex.cli.demo"),
    "gradindex.hugging_face": ("source", "gradindex.data.hugging_face"),
    "gradindex.influence.plots": ("plot_self_influence", "gradindex.plots.influence"),
    "gradindex.influence.self_influence": ("self_influence", "gradindex.influence.labels"),
    "gradindex.plots": ("plot_similar", "gradindex.plots.similar"),
}


@pytest.mark.parametrize(("module", "name"), PICKLED.items())
def test_what_was_pickled_under_an_old_name_opens(module, name):
    for ending, needed in NEEDED.items():
        if module.endswith(ending):
            pytest.importorskip(needed)
    found = pickle.loads(f"c{module}\n{name}\n.".encode())  # as protocol 0 names a class or function
    elsewhere = {"gradindex.verify": "gradindex.search.audit_result"}
    assert found.__module__ == elsewhere.get(module, _moved.MOVED.get(module, "gradindex.data.hugging_face"))


def test_every_old_name_is_tried():
    assert set(PICKLED) == {*_moved.MOVED, "gradindex.hugging_face"}


@pytest.mark.parametrize("old", _moved.MOVED)
def test_an_old_name_is_the_module_itself(old):
    for ending, needed in NEEDED.items():
        if old.endswith(ending):
            pytest.importorskip(needed)
    assert import_module(old) is import_module(_moved.MOVED[old])


def test_old_names_are_found_in_a_fresh_process():
    code = "import pickle; print(pickle.loads(b'cgradindex.verify\\nAudit\\n.').__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "gradindex.search.audit_result", done.stderr


@pytest.mark.parametrize(("old", "name", "new"), [(old, *rest) for old, rest in DOCUMENTED.items()])
def test_documented_paths_lead_to_the_code(old, name, new):
    assert getattr(import_module(old), name) is getattr(import_module(new), name)
    assert set(import_module(old).__all__) <= set(dir(import_module(old)))


def test_unknown_modules_are_still_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"gradindex\.nothing"):
        import_module("gradindex.nothing")
