"""Operating points: FAISS's search-time parameters, given with each search, so that threads do not disturb each other.

FAISS's `ParameterSpace` sets them on the index itself, which other threads may be searching; here they become the
search's own ``SearchParameters``, through preprocessing and refinement down to the lists or the graph.
"""

from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np

Point = Mapping[str, float]
"""FAISS's names of search-time parameters (nprobe, efSearch, k_factor_rf, …) and their values."""

_library: Any = faiss
_MOST_POINTS = 48  # settings tried
_UNUSED = {"ht"}  # of polysemous codes, which factory strings do not train


def parse(key: str) -> dict[str, float]:
    """Return the point that a key of FAISS's ``ParameterSpace`` such as ``'nprobe=16,ht=64'`` names."""
    pairs = (part.split("=") for part in key.split(",") if part)
    return {name: float(value) for name, value in pairs}


def keys(index: faiss.Index) -> list[str]:
    """Return the keys of FAISS's parameter space; evenly chosen ones if there are too many."""
    space = _library.ParameterSpace()
    space.initialize(index)
    points = [parse(space.combination_name(number)) for number in range(space.n_combinations())]
    named = [_key({name: value for name, value in point.items() if name not in _UNUSED}) for point in points]
    distinct = list(dict.fromkeys(named))
    chosen = np.unique(np.linspace(0, len(distinct) - 1, min(len(distinct), _MOST_POINTS)).astype(np.int64))
    return [distinct[number] for number in chosen]


def all_lists(index: faiss.Index, key: str) -> str:
    """Return the key that probes all inverted lists and is else as `key`; `key` itself where there are none."""
    try:
        lists = faiss.extract_index_ivf(index).nlist
    except RuntimeError:
        return key
    return _key({**parse(key), "nprobe": lists})


def _key(point: Point) -> str:
    return ",".join(f"{name}={value:g}" for name, value in point.items())


def filters(index: faiss.Index) -> bool:
    """Whether FAISS finds all of a few selected vectors in this kind of index.

    Graphs (HNSW) take a filter, but miss rows when few are selected; other kinds refuse one.
    """
    index = _library.downcast_index(index)
    if isinstance(index, _library.IndexPreTransform):
        return filters(index.index)
    if isinstance(index, _library.IndexRefine):
        return filters(index.base_index)
    flat = _library.IndexFlat, _library.IndexScalarQuantizer
    return isinstance(index, (*flat, _library.IndexIVF)) and not isinstance(index, _library.IndexIVFPQFastScan)


def grows(index: faiss.Index) -> bool:
    """Whether rows can be added to an index that has some; FAISS's NSG graphs take all of them at once."""
    index = _library.downcast_index(index)
    if isinstance(index, _library.IndexPreTransform):
        return grows(index.index)
    if isinstance(index, _library.IndexRefine):
        return grows(index.base_index)
    return not isinstance(index, _library.IndexNSG)


def build(
    index: faiss.Index, point: Point | None = None, selector: faiss.IDSelector | None = None, everywhere: bool = False
) -> faiss.SearchParameters | None:
    """Return FAISS's ``SearchParameters`` of an operating point; None if there is nothing to say.

    Parameters
    ----------
    index
        A FAISS index.
    point
        Search-time parameters; those not named keep the index's own values.
    selector
        An ``IDSelector``, for an index that `filters`.
    everywhere
        Probe all lists.
    """
    point = point or {}
    if not point and selector is None:
        return None
    found: faiss.SearchParameters | None
    index = _library.downcast_index(index)
    if isinstance(index, _library.IndexPreTransform):
        inner = build(index.index, point, selector, everywhere)
        found = inner and _library.SearchParametersPreTransform(index_params=inner)
    elif isinstance(index, _library.IndexRefine):
        inner = build(index.base_index, point, selector, everywhere)
        factor = point.get("k_factor_rf", index.k_factor)
        found = _library.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
    elif isinstance(index, _library.IndexIVF):
        probes = index.nlist if everywhere else int(point.get("nprobe", index.nprobe))
        found = _library.SearchParametersIVF(sel=selector, nprobe=probes, **_quantizer(index, point))
    elif isinstance(index, _library.IndexHNSW):
        found = _library.SearchParametersHNSW(sel=selector, efSearch=int(point.get("efSearch", index.hnsw.efSearch)))
    else:
        found = None if selector is None else _library.SearchParameters(sel=selector)
    return found


def _quantizer(index: faiss.IndexIVF, point: Point) -> dict[str, faiss.SearchParameters]:
    """Return the parameters of the search among the lists' centroids."""
    own = {name.removeprefix("quantizer_"): value for name, value in point.items() if name.startswith("quantizer_")}
    inner = build(index.quantizer, own) if own else None
    return {} if inner is None else {"quantizer_params": inner}
