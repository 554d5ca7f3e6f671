"""Modules under the names that they had, for objects that were pickled then, and programs that import them so."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "gradindex.batches": "gradindex.data.source",
    "gradindex.chain": "gradindex.data.chain",
    "gradindex.cli.index": "gradindex.cli.index_commands",
    "gradindex.data.forms": "gradindex.data.samples",
    "gradindex.data.reading": "gradindex.data.dataset_types",
    "gradindex.distributed.rows": "gradindex.distributed.cluster_rows",
    "gradindex.embedding": "gradindex.compute.blocks",
    "gradindex.evaluation.quanda_adapter": "gradindex.interop.quanda",
    "gradindex.explainer": "gradindex.interop.alibi",
    "gradindex.exporting": "gradindex.interop.export",
    "gradindex.influence.checkpoints": "gradindex.gradients.training.checkpoints",
    "gradindex.influence.losses_tensorflow": "gradindex.influence.unsupervised_tensorflow",
    "gradindex.influence.losses_torch": "gradindex.influence.unsupervised_torch",
    "gradindex.influence.preconditioner": "gradindex.gradients.training.adam",
    "gradindex.influence.tracin": "gradindex.gradients.training.tracin",
    "gradindex.neighbors": "gradindex.interop.sklearn",
    "gradindex.plan": "gradindex.lifecycle.plan",
    "gradindex.precision": "gradindex.gradients.in_double",
    "gradindex.relevance.rows": "gradindex.relevance.metric_rows",
    "gradindex.relevance.space": "gradindex.relevance.features",
    "gradindex.rendering": "gradindex.plots.rendering",
    "gradindex.search.rows": "gradindex.search.row_search",
    "gradindex.sketch.rows": "gradindex.sketch.unit_rows",
    "gradindex.store.publish": "gradindex.store.manifest",
    "gradindex.store.table": "gradindex.data.table",
    "gradindex.summary": "gradindex.lifecycle.summary",
    "gradindex.verify": "gradindex.search.audit",
}


class _Moved(MetaPathFinder, Loader):
    """Finds a module by its old name: the very module that has the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


def install() -> None:
    """Let old names be found; asked last, after every module that there is."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
