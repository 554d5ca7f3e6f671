"""Which FAISS index a store is to have: its factory string and the width of its vectors, before there are any."""

import re

import faiss

from gradindex.ann.choice import choose_index
from gradindex.sketch import from_json
from gradindex.sketch.whitening import WHITENED
from gradindex.store import Header

_FOLD = re.compile(r"Fold(\d+),(.+)", re.DOTALL)
_TRAIN_ROWS_PER_LIST = 64


def plan(header: Header, index: str, rows: int | None = None, memory: int | None = None) -> tuple[str, int]:
    """Return the factory string and width that `build` will use for `rows` (None: the header's), before there are any.

    Raises
    ------
    ValueError
        If FAISS does not know the string, or the rows cannot be folded to the width it begins with; if nothing fits
        `memory`, or it is given with a string.
    """
    able = foldable(header)
    if index == "auto":
        factory = choose_index(rows or header.rows, header.dim, foldable=able, memory=memory)
    elif memory is None:
        factory = index
    else:
        raise ValueError(f"index_memory={memory} is for index='auto'; {index!r} takes what it takes.")
    dim, inner = unfold(factory, header.dim)
    if header.dim % dim or (dim != header.dim and not able):
        kind = header.sketch["kind"]
        raise ValueError(f"{factory!r}: {kind} rows of {header.dim} numbers cannot be folded to {dim}.")
    new_index(inner, dim)
    return factory, dim


def choose(rows: int, dim: int, able: bool) -> tuple[str, int]:
    """Return FAISS's own factory string and the width of its vectors for ``index='auto'``."""
    width, inner = unfold(choose_index(rows, dim, foldable=able), dim)
    return inner, width


def unfold(factory: str, dim: int) -> tuple[int, str]:
    """Return the width that a string such as ``'Fold256,IVF64,SQ8'`` names, else `dim`, and what is FAISS's own."""
    match = _FOLD.fullmatch(factory)
    return (int(match[1]), match[2]) if match and int(match[1]) else (dim, factory)


def foldable(header: Header) -> bool:
    """Whether a store's rows can be made narrower.

    Whitened ones can: their coordinates are uncorrelated, so that products of different ones, which folding adds to an
    inner product, cancel on average; the leading ones come with lesser ones.
    """
    if header.sketch["kind"] == WHITENED:
        return True
    return header.backend != "none" and from_json(header.sketch).foldable


def new_index(factory: str, dim: int) -> faiss.Index:
    """Return an empty index of FAISS's own factory string; raises ValueError if FAISS does not know it."""
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        raise ValueError(
            f"Unknown index {factory!r}. Expected 'auto' or a FAISS factory string of width {dim}, "
            "such as 'Flat', 'IVF256,SQ8' or 'HNSW32'."
        ) from None


def probes(lists: int) -> int:
    """Return how many lists a search reads: a sixteenth, at least 8 (gradients cluster by class)."""
    return min(lists, max(8, lists // 16))


def training_rows(rows: int, lists: int) -> int:
    """Return how many of `rows` rows a quantiser of so many lists is trained on."""
    return min(rows, max(lists * _TRAIN_ROWS_PER_LIST, 4096))
