"""gradindex: approximate nearest neighbours over gradient embeddings.

The training set becomes a FAISS index of per-sample loss gradients, so that explaining a prediction is one
k-NN query, and every answer can be checked against the exact kernel.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradindex.adding import add
    from gradindex.builder import build, index_store, load
    from gradindex.compacting import compact
    from gradindex.distributed.options import Ray
    from gradindex.embedding import embed, exact_gradients
    from gradindex.errors import DamagedIndexError, IndexExistsError, MismatchError
    from gradindex.explainer import GradientSimilarity
    from gradindex.explanation import Explanation
    from gradindex.exporting import export
    from gradindex.index.choice import choose_index
    from gradindex.index.index import Index
    from gradindex.job import Job
    from gradindex.neighbors import GradientNeighborsTransformer
    from gradindex.precision import InDouble
    from gradindex.repair import repair
    from gradindex.sketch import SJLT, CountSketch, Gaussian, Identity, Landmark, Rademacher
    from gradindex.store import Store
    from gradindex.verify import Audit

__version__ = "0.1.0"

# Loaded when first used, so that importing gradindex costs next to nothing.
_HOMES = {
    "add": "adding",
    "compact": "compacting",
    "build": "builder",
    "index_store": "builder",
    "load": "builder",
    "embed": "embedding",
    "exact_gradients": "embedding",
    "DamagedIndexError": "errors",
    "IndexExistsError": "errors",
    "MismatchError": "errors",
    "GradientSimilarity": "explainer",
    "Explanation": "explanation",
    "export": "exporting",
    "Index": "index.index",
    "choose_index": "index.choice",
    "Job": "job",
    "repair": "repair",
    "CountSketch": "sketch",
    "Gaussian": "sketch",
    "GradientNeighborsTransformer": "neighbors",
    "Identity": "sketch",
    "InDouble": "precision",
    "Landmark": "sketch",
    "Rademacher": "sketch",
    "Ray": "distributed.options",
    "SJLT": "sketch",
    "Store": "store",
    "Audit": "verify",
}

__all__ = [
    "SJLT",
    "Audit",
    "CountSketch",
    "DamagedIndexError",
    "Explanation",
    "Gaussian",
    "GradientNeighborsTransformer",
    "GradientSimilarity",
    "Identity",
    "InDouble",
    "Index",
    "IndexExistsError",
    "Job",
    "Landmark",
    "MismatchError",
    "Rademacher",
    "Ray",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradindex' has no attribute {name!r}")
    value = getattr(import_module(f"gradindex.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
