"""gradindex: approximate nearest neighbours over gradient embeddings.

The training set becomes a FAISS index of per-sample loss gradients, so that explaining a prediction is one
k-NN query, and every answer can be checked against the exact kernel.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from gradindex import _moved
from gradindex._version import __version__ as __version__

if TYPE_CHECKING:
    from gradindex.ann.choice import choose_index
    from gradindex.compute.blocks import embed, exact_gradients
    from gradindex.distributed.options import Ray
    from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
    from gradindex.explanation import Explanation
    from gradindex.gradients.in_double import InDouble
    from gradindex.index.index import Index
    from gradindex.index.opening import add, build, compact, index_store, repair
    from gradindex.interop.alibi import GradientSimilarity
    from gradindex.interop.export import export
    from gradindex.interop.sklearn import GradientNeighborsTransformer
    from gradindex.job import Job
    from gradindex.lifecycle.options import BuildOptions
    from gradindex.loading import load
    from gradindex.search.audit_result import Audit
    from gradindex.search.options import SearchOptions
    from gradindex.sketch import SJLT, CountSketch, Gaussian, Groups, Identity, Landmark, Rademacher
    from gradindex.store import Store

_moved.install()

# Loaded when first used, so that importing gradindex costs next to nothing.
_HOMES = {
    "add": "index.opening",
    "compact": "index.opening",
    "build": "index.opening",
    "index_store": "index.opening",
    "load": "loading",
    "embed": "compute.blocks",
    "exact_gradients": "compute.blocks",
    "DamagedIndexError": "errors",
    "IndexExistsError": "errors",
    "MismatchError": "errors",
    "GradientSimilarity": "interop.alibi",
    "Explanation": "explanation",
    "BuildOptions": "lifecycle.options",
    "SearchOptions": "search.options",
    "export": "interop.export",
    "Index": "index.index",
    "choose_index": "ann.choice",
    "Job": "job",
    "repair": "index.opening",
    "CountSketch": "sketch",
    "Gaussian": "sketch",
    "GradientNeighborsTransformer": "interop.sklearn",
    "Groups": "sketch",
    "Identity": "sketch",
    "InDouble": "gradients.in_double",
    "Landmark": "sketch",
    "Rademacher": "sketch",
    "Ray": "distributed.options",
    "SJLT": "sketch",
    "Store": "store",
    "Audit": "search.audit_result",
}

__all__ = [
    "SJLT",
    "Audit",
    "BuildOptions",
    "CountSketch",
    "DamagedIndexError",
    "Explanation",
    "Gaussian",
    "GradientNeighborsTransformer",
    "GradientSimilarity",
    "Groups",
    "Identity",
    "InDouble",
    "Index",
    "IndexExistsError",
    "Job",
    "Landmark",
    "MismatchError",
    "Rademacher",
    "Ray",
    "SearchOptions",
    "Store",
    "add",
    "build",
    "choose_index",
    "compact",
    "embed",
    "exact_gradients",
    "export",
    "index_store",
    "load",
    "repair",
]


if not TYPE_CHECKING:  # type checkers would take it to have any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'gradindex' has no attribute {name!r}")
        value = getattr(import_module(f"gradindex.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
