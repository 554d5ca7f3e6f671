"""What an index does with whitened rows, and scores of all samples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels, relevance
from gradindex.ann.selection import Selection
from gradindex.data.source import Ids
from gradindex.defaults import INDEX, WHITENED_BITS, WHITENED_DIMS
from gradindex.index.asking import Askable
from gradindex.index.state import Opened, pinned
from gradindex.lifecycle import whiten as whitening
from gradindex.search import cascade
from gradindex.search.whitened import Whitened

_SCORED = 256  # queries whose scores are computed in one scan of the store


class Whitenable(Askable):
    """An index whose rows can be whitened, see `gradindex.sketch.whitening`; a part of `gradindex.Index`."""

    @property
    @pinned
    def ids(self) -> Ids:
        """Dataset positions of the samples, (n,) int64 in the order of the store, without those that were removed."""
        return self.store.ids if self.store.alive is None else self.store.ids[self.store.alive]

    @property
    def white(self) -> Whitened:
        """The whitened rows; raises ValueError if there are none."""
        return self.opened.of(self.store)

    @property
    def is_whitened(self) -> bool:
        """Whether there are whitened rows, so that kernels `white_dot` and `white_cos` can be asked for."""
        return self.opened.are_there(self.store)

    def whitened_rows(self) -> Whitened:
        """Return the whitened rows of all samples.

        Raises
        ------
        ValueError
            If there are none, or some samples are not whitened yet; if the rows are those of a metric.
        """
        whitening.refuse_metric(self.store)
        rows = self.white
        rows.refuse_missing()
        return rows

    def whiten(
        self,
        *,
        damping: float | None = None,
        dims: int = WHITENED_DIMS,
        bits: int = WHITENED_BITS,
        index: str = INDEX,
        sample: int = whitening.SAMPLE,
        progress: bool | None = None,
    ) -> Whitened:
        """Whiten the rows by their own second moment, for the kernels ``white_dot`` and ``white_cos``.

        Needs no model. The whitened rows are a store of their own beside the others, with a FAISS
        index; those that were there are replaced when the new ones are finished. Samples that are added later are
        whitened alike.

        Parameters
        ----------
        damping
            λ, added to the second moment R = mean g gᵀ, in units of squared gradients. None: .0045 of tr R² / tr R, see
            `gradindex.sketch.whitening`.
        dims
            Numbers of a whitened row, those of the leading eigenvectors; fewer where R has fewer.
        bits
            Bits of each of them, 8 or 4.
        index
            ``'auto'`` or a FAISS factory string.
        sample
            R is taken from at most so many rows, evenly spaced.
        progress
            Show a progress bar; None: only on a terminal.

        Returns
        -------
        Whitened
            The rows, with the damping and how many rows R was taken from.

        Raises
        ------
        ValueError
            If `damping`, `dims` or `sample` is not positive, `bits` is neither 4 nor 8, all rows are zero, or rows are
            no gradients.
        """
        whitening.refuse_metric(self.store)
        self.check_in_place()
        found = whitening.whiten(
            self.store.path, damping=damping, dims=dims, bits=bits, index=index, sample=sample, progress=progress
        )
        self.opened = Opened()
        return found

    @pinned
    def scores(
        self, x: Any = None, y: Any = None, *, ids: Any = None, kernel: str | None = None
    ) -> NDArray[np.float32]:
        """Return the estimated kernel values of all samples; the stored rows are scanned once for every 256 queries.

        Parameters
        ----------
        x, y, ids
            Queries, as `explain` takes them.
        kernel
            As in `explain`: of ``white_dot`` and ``white_cos``, what `explain` returns, but for rounding; of the
            others, the sketch's estimates.

        Returns
        -------
        ndarray
            Shape (m, n) float32; columns in the order of `ids`.

        Raises
        ------
        ValueError
            As `explain`; and, for whitened rows, if some samples are not whitened yet.
        """
        asked = self.labelled(x, y, ids)
        whitened = kernels.white(kernel)
        if whitened is not None:
            white_rows = self.whitened_rows()
            store, parsed = white_rows.store, whitened.plain
        else:
            store, parsed = self.store, relevance.kernel_of(self.store.header.metric, kernel)
        out = np.empty((len(asked), len(self.ids)), np.float32)
        kept = np.isin(store.ids, self.ids)
        for some, rows, norms in self.sketch_chunks(asked, _SCORED):
            if whitened is not None:
                rows, norms = white_rows.whitener(rows, norms)
            begin = 0
            for first, block in store.blocks():
                here = kept[first : first + len(block)]
                dots = (rows @ block[here].T).astype(np.float64)
                lengths = store.norms[first : first + len(block)][here].astype(np.float64)
                dots *= norms[:, None] * lengths
                stop = begin + dots.shape[1]
                out[some, begin:stop] = kernels.values(parsed, dots, norms, lengths)
                begin = stop
        return out

    def _search_whitened(
        self, sketches: NDArray[np.float32], k: int, selection: Selection | None
    ) -> tuple[NDArray[np.float32], Ids]:
        """Return the whitened cosines (m, k), descending, of sketches with those rows, and ids (m, k)."""
        rows = self.white
        unit, _ = rows.whitener(sketches, np.ones(len(sketches)))
        scores, found, _ = rows.rows.nearest(unit, min(k, len(rows.store)), rows.selection(selection))
        return scores, cascade.ids_of(rows.store, found)
