"""Which index suits so many rows of such a width, given memory and a wanted recall."""

import math
from collections.abc import Iterator

FLAT_ROWS = 100_000
"""Up to here an exact scan is fast enough."""
NARROW = 256
"""Width of the folded sketch in a quantised index."""
# Codes by the recall@10 of the whole cascade with its default depths, the worse of proponents and opponents, on 60,000
# gradients of a CNN, all lists probed: width after folding, FAISS's codes, bytes a row beside 8 of its id, recall.
_CODES = (
    (256, "SQ8", 256, 0.999),
    (256, "SQ4", 128, 0.998),
    (128, "SQ8", 128, 0.98),
    (256, "RaBitQ", 44, 0.99),
    (64, "SQ8", 64, 0.97),
)


def choose_index(rows: int, dim: int, *, foldable: bool = True, memory: int | None = None, recall: float = 0.99) -> str:
    """Return the factory string of the index to build: what ``index='auto'`` stands for.

    Up to 100,000 rows an exact scan, beyond inverted lists of 8-bit numbers on sketches folded to 256; with less
    memory, narrower or coarser codes, as far as the wanted recall allows.

    Parameters
    ----------
    rows, dim
        Rows and width of the store.
    foldable
        Whether rows can be folded to a narrower width (those of CountSketch can).
    memory
        Bytes that the index may take; None: as many as it likes.
    recall
        Wanted recall@10 of answers with the default candidates and exact checks.

    Raises
    ------
    ValueError
        If `rows`, `dim` or `memory` is not positive, `recall` not between 0 and 1, or nothing fits; the message says
        what would.
    """
    for name, value in (("rows", rows), ("dim", dim), ("memory", memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be positive, got {value}.")
    if not 0 <= recall <= 1:
        raise ValueError(f"recall must be between 0 and 1, got {recall}.")
    options = list(_options(rows, dim, foldable))
    for factory, size, expected in options:
        if (memory is None or size <= memory) and expected >= recall:
            return factory
    able = [option for option in options if option[2] >= recall]
    if not able:
        best = max(option[2] for option in options)
        raise ValueError(f"No index is expected to reach recall {recall} with the default depths, at most {best}.")
    factory, size, _ = min(able, key=lambda option: option[1])
    raise ValueError(
        f"No index of {rows} rows reaches recall {recall} in {memory} bytes; {factory!r} takes {size}. Give more "
        "memory or want less recall."
    )


def _options(rows: int, dim: int, foldable: bool) -> Iterator[tuple[str, int, float]]:
    """Yield factory strings with bytes and expected recall, the preferred ones first."""
    flat = ("Flat", 4 * dim * rows, 1.0)
    if rows <= FLAT_ROWS:
        yield flat
    lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
    for width, codes, size, expected in _CODES:
        fold = foldable and dim > width and dim % width == 0
        own = dim  # rows that are not folded come with 8 bits only
        if not fold and (width, codes) != _CODES[0][:2]:
            continue
        centroids, each = 4 * lists * (width if fold else dim), (size if fold else own) + 8
        yield f"Fold{width},IVF{lists},{codes}" if fold else f"IVF{lists},{codes}", rows * each + centroids, expected
    if rows > FLAT_ROWS:
        yield flat
