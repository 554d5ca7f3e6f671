"""An index as queries meet it: what they must look like, and their gradients as rows beside the stored ones."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradindex.compute import queries
from gradindex.compute.held_queries import Held
from gradindex.data.checks import as_ids
from gradindex.data.names import Tree
from gradindex.data.source import Batch
from gradindex.gradients.parameter import Floats
from gradindex.gradients.projector import Projector
from gradindex.index.state import Changing
from gradindex.search import cascade, texts
from gradindex.search.sets import AT_ONCE
from gradindex.search.texts import Asked, Words
from gradindex.sketch.unit_rows import normalise
from gradindex.words import Task


class Askable(Changing):
    """An index that takes queries; a part of `gradindex.Index`."""

    @property
    def projector(self) -> Projector:
        """The projection that made the stored sketches."""
        return self.at_hand.projector

    def sketches(self, gradients: Floats, norms: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return unit-norm rows (m, dim) of gradients (m, P) with norms (m,), comparable with the stored ones."""
        projector = self.projector
        return normalise(projector.finish(projector(self.job.engine.parameters, gradients), norms))

    def evaluate(self, held: Held, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return exact inner products (m, r) of held queries with the samples of some rows.

        Raises
        ------
        WayDiffers
            If some that were compared are not those of training steps.
        """
        products, losses = self.rows.evaluate(held, self.store.ids[rows])
        self.changed.append(cascade.compare_losses(self.store, losses))
        return products

    @property
    def example(self) -> Batch:
        """The first samples of the dataset: the form that queries and labels must have."""
        return self.at_hand.example

    def asked(self, x: Tree, y: Tree, ids: ArrayLike | None, words: Words) -> Asked:
        """Return what `explain` is asked, in words or as `labelled` takes it; errors as there."""
        if words.given and not (x is None and y is None and ids is None):
            raise ValueError("Give either inputs x (and y), or ids of training samples, or text, prompt or messages.")
        chosen = None if ids is None else as_ids(ids)
        return texts.asked(self.job, words, chosen, lambda: self.labelled(x, y, chosen))

    def labelled(self, x: Tree, y: Tree = None, ids: ArrayLike | None = None) -> queries.Queries:
        """Return queries with the labels that `explain` would give them; arguments and errors as there."""
        if (x is None) == (ids is None):
            raise ValueError("Give either inputs x (and y), or ids of training samples.")
        if ids is not None:
            batch = self.job.source.take(as_ids(ids))
            if len(batch) == 0:
                raise ValueError("There are no queries: ids is empty.")
            return queries.Queries(batch.x, batch.y)
        x, y = queries.match_shapes(x, y, self.example)
        return queries.with_labels(self.job.engine, Task(self.job.task), x, y, self.example.y)

    def embedded(self, asked: queries.Queries) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return unit-norm sketches (m, dim) of labelled queries, and the norms of their gradients (m,)."""
        parts = [(sketches, norms) for _, sketches, norms in self.sketch_chunks(asked)]
        return np.concatenate([one for one, _ in parts]), np.concatenate([norms for _, norms in parts])

    def sketch_chunks(
        self, asked: queries.Queries, most: int = AT_ONCE
    ) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float64]]]:
        """Yield places of labelled queries, their unit-norm sketches (c, dim) and norms (c,), so many at once."""
        return queries.sketch_chunks(self.job.engine, asked, self.projector, self.at_hand.batch_size, most)
