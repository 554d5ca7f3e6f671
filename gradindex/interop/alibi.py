"""GradientSimilarity: explain predictions by similar training samples; same interface as Alibi's of that name."""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import kernels
from gradindex._version import __version__
from gradindex.compute import exact, queries
from gradindex.data.checks import check_batch
from gradindex.data.labels import as_array
from gradindex.data.names import Device, Leaf, LossFunction, Model
from gradindex.data.source import Batch, ColumnSource, Tree, map_leaves, take_rows
from gradindex.defaults import NEIGHBOURS, RERANK, SEED
from gradindex.explanation import Explanation
from gradindex.gradients import make_engine
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.index.index import Index
from gradindex.index.opening import build
from gradindex.interop import alibi_saved
from gradindex.job import Job
from gradindex.kernels import Kernel
from gradindex.lifecycle.options import BuildOptions
from gradindex.runtime.progress import progress_bar
from gradindex.search.answer import check_k
from gradindex.search.options import SearchOptions
from gradindex.sketch import Sketch, widest
from gradindex.store.location import Location, locate, on_disk
from gradindex.words import Backend, BackendName, Task, choose_word

_SHOWN = 5  # samples in most_similar and least_similar


class GradientSimilarity:
    """Rank training samples by the similarity of their loss gradients to a query's (Charpiat et al. 2019).

    Parameters
    ----------
    predictor
        A trained ``torch.nn.Module`` or Keras 3 model.
    loss_fn
        ``loss_fn(output, y)`` for PyTorch, ``loss_fn(y, output)`` for Keras; any reduction.
    sim_fn
        ``'grad_dot'``, ``'grad_cos'`` or ``'grad_asym_dot'``.
    task
        ``'classification'`` or ``'regression'``; for regression `explain` needs Y.
    precompute_grads
        Keep all training gradients, (n, P), in memory: faster answers, much memory.
    backend
        ``'tensorflow'`` or ``'pytorch'``.
    device
        Where to compute; None: where the model is.
    verbose
        Show progress bars.
    index
        None: every score is exact and all n samples are ranked. ``'auto'``, ``'Flat'`` or any FAISS factory
        string: `explain` is a k-NN query in an index of compressed gradients, re-ranked exactly.
    index_path
        Where to build the index, a directory that holds no other one; None: a temporary directory that lives as
        long as the index.
    sketch
        The projection in the index. None: no compression for models of up to 4,096 parameters, else
        ``CountSketch(4096)`` for up to 20,000 samples and ``CountSketch(1024)`` above, where bytes count.
    seed
        Seed of the projection.
    batch_size
        Samples at once; None finds a size.
    parameters
        Which parameters' gradients: None (all trainable), a regular expression, a list, or ``"last_layer"``.
    eps
        Added to the cosine's denominator and to ‖train‖².

    Raises
    ------
    ValueError
        For an unknown `sim_fn`, `task` or `backend`, or a model with nothing trainable.
    ImportError
        If the framework is not installed.
    TypeError
        For a bad type of `device`.
    IndexExistsError
        From `fit` or `explain`, if `index_path` holds an index that this object did not build.
    """

    def __init__(
        self,
        predictor: Model,
        loss_fn: LossFunction,
        sim_fn: str = "grad_dot",
        task: str = "classification",
        precompute_grads: bool = False,
        backend: str = "tensorflow",
        device: Device | None = None,
        verbose: bool = False,
        *,
        index: str | None = None,
        index_path: str | Path | None = None,
        sketch: Sketch | None = None,
        seed: int = SEED,
        batch_size: int | None = None,
        parameters: str | Sequence[str] | None = None,
        eps: float = 1e-7,
    ) -> None:
        self.sim_fn = choose_word(Kernel, sim_fn, "sim_fn")
        self.task = choose_word(Task, task, "task")
        self.backend = choose_word(BackendName, backend, "backend")
        self.loss_fn = loss_fn
        self.precompute_grads = precompute_grads
        self.device = device
        self.verbose = verbose
        self.index_factory = index
        self.index_path = None if index_path is None else locate(index_path)
        self.sketch = sketch
        self.seed = seed
        self.batch_size = batch_size
        self.parameters = parameters
        self.eps = eps
        self.X_train: Any = None
        self.Y_train: Any = None
        self.grad_X_train: Floats | None = None
        self.index: Index | None = None
        self._norms: NDArray[np.float64] | None = None
        self._source: ColumnSource | None = None
        self._built_at_path = False
        self.meta: dict[str, Any] = {
            "name": "GradientSimilarity",
            "type": ["whitebox"],
            "explanations": ["local"],
            "params": {
                "sim_fn_name": self.sim_fn.value,
                "store_grads": precompute_grads,
                "backend_name": self.backend.value,
                "task_name": self.task.value,
            },
            "version": __version__,
        }
        self._set_predictor(predictor)

    def __repr__(self) -> str:
        fitted = "not fitted" if self._source is None else f"{len(self._source)} training samples"
        return f"GradientSimilarity({self.sim_fn.value}, {self.backend.value}, index={self.index_factory!r}, {fitted})"

    def fit(self, X_train: Tree, Y_train: Tree) -> "GradientSimilarity":
        """Keep the training set; compute its gradients or build its index if that was asked for.

        Parameters
        ----------
        X_train
            n training inputs: an array, a framework tensor, a list of objects, or a dict or tuple of arrays.
            The model gets objects as a list of one.
        Y_train
            Their labels.

        Raises
        ------
        ValueError
            If there are no samples or labels, X and Y differ in number, or values are not finite.
        """
        self._adopt(X_train, Y_train)
        self._prepare()
        return self

    def explain(self, X: Tree, Y: Tree = None, k: int | None = None, rerank: int = RERANK) -> Explanation:
        """Rank the training samples by similarity to each query.

        Parameters
        ----------
        X
            m queries; a single one may lack the first axis.
        Y
            Their labels, or one for all; None: the model's own predictions (classification only).
        k
            How many of the most and of the least similar. None: all n without an index, else 10.
        rerank
            With an index: how many candidates of each side are evaluated exactly; 0 leaves estimates.

        Returns
        -------
        Explanation
            `scores` (m, n) float64, descending; `ordered_indices` (m, n) int64; `most_similar` and
            `least_similar` (m, 5, …), the latter least first; arrays, or lists if X_train is a list. With
            `k` or an index the first two are (m, k), and `opponent_scores`, `opponent_indices` hold the k least
            similar, ascending; with an index `exact` and `opponent_exact` (m, k) say which scores are exact.

        Raises
        ------
        ValueError
            Before `fit`; for a shape other than the training data's, a number of labels other than m or 1, a
            regression without Y, or a bad k.
        """
        if self._source is None:
            raise ValueError("There is no training data to compare with: call fit before explain.")
        example = Batch(np.empty(0, np.int64), take_rows(self._source.x, slice(0, 1)), self._source.y)
        if Y is None and self.task is Task.REGRESSION:
            raise ValueError("Regression task requires a target value. 'Y' must be provided.")
        x, y = queries.match_shapes(X, Y, example)
        asked = queries.with_labels(self._engine, self.task, x, y, self._source.y)
        self._prepare()
        if self.index is None:
            data = self._rank_all(asked, k)
        else:
            count = min(NEIGHBOURS, len(self._source)) if k is None else k
            options = SearchOptions(k=count, kernel=self.sim_fn, rerank=rerank, eps=self.eps)
            found = self.index.explain(asked.x, asked.y, options=options)
            data = dict(found.data)
            if Y is None:
                data.pop("query_labels", None)  # they were the predictions
        last = data.get("opponent_indices", data["ordered_indices"][:, ::-1])
        data["most_similar"] = self._samples(data["ordered_indices"][:, :_SHOWN])
        data["least_similar"] = self._samples(last[:, :_SHOWN])
        return Explanation(dict(self.meta), data)

    def reset_predictor(self, predictor: Model) -> None:
        """Use another model; stored gradients and the index are computed anew when next needed."""
        self._set_predictor(predictor)
        self._forget()

    def save(self, path: str | Path) -> None:
        """Save everything but the model into a directory, as JSON and NumPy files; see `load`.

        Raises
        ------
        ValueError
            Before `fit`, or if `path` is a URL.
        TypeError
            If the training data are objects that JSON cannot hold.
        """
        alibi_saved.save(self, on_disk(path, "GradientSimilarity.save"))

    @classmethod
    def load(cls, path: str | Path, predictor: Model, loss_fn: LossFunction | None = None) -> "GradientSimilarity":
        """Open a saved explainer.

        Parameters
        ----------
        path
            The directory given to `save`.
        predictor
            The model.
        loss_fn
            The loss; may be left out if it is one of the framework's own.

        Raises
        ------
        FileNotFoundError
            If there is no explainer at `path`.
        MismatchError
            If gradients or an index were saved for a model with other weights.
        ValueError
            If `loss_fn` is needed, or `path` is a URL.
        """
        explainer: GradientSimilarity = alibi_saved.load(
            cls, on_disk(path, "GradientSimilarity.load"), predictor, loss_fn
        )
        return explainer

    def _set_predictor(self, predictor: Model) -> None:
        self._engine = self._make_engine(predictor)
        self.predictor = predictor
        frozen = len(self._engine.frozen)
        if frozen:
            warnings.warn(
                f"{frozen} {'parameter of the model is' if frozen == 1 else 'parameters of the model are'} frozen; "
                "no gradient of theirs is part of the similarity.",
                UserWarning,
                stacklevel=3,
            )

    def _make_engine(self, predictor: Model) -> Engine:
        backend = Backend.TORCH if self.backend is BackendName.PYTORCH else Backend.TENSORFLOW
        return make_engine(predictor, self.loss_fn, backend=backend, parameters=self.parameters, device=self.device)

    def _adopt(self, X_train: Tree, Y_train: Tree) -> None:
        source = ColumnSource(X_train, Y_train)
        if len(source) == 0:
            raise ValueError("The training set is empty.")
        check_batch(Batch(np.arange(len(source), dtype=np.int64), source.x, source.y))
        if self._source is not None:  # what the engine found out about the samples may not hold for these
            self._engine = self._make_engine(self.predictor)
        self.X_train, self.Y_train, self._source = X_train, Y_train, source
        self._forget()

    def _adopt_gradients(self, gradients: Floats) -> None:
        self.grad_X_train, self._norms = gradients, exact.norms(gradients)

    def _forget(self) -> None:
        self.grad_X_train = None
        self._norms = None
        self.index = None

    def _prepare(self) -> None:
        """Compute what was asked to be kept and is not there: gradients, index."""
        if self.index_factory is not None and self.index is None:
            self.index = self._build_index(self.index_factory)
        if self.precompute_grads and self.grad_X_train is None:
            self._adopt_gradients(np.concatenate([found for _, found in self._blocks("Gradients")]))

    def _build_index(self, factory: str) -> Index:
        if self.index_path is not None:
            index = self._build_index_at(self.index_path, factory, overwrite=self._built_at_path)
            self._built_at_path = True
            return index
        folder = tempfile.mkdtemp(prefix="gradindex-")
        try:
            index = self._build_index_at(Path(folder) / "index", factory, overwrite=False)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        weakref.finalize(index, shutil.rmtree, folder, ignore_errors=True)
        return index

    def _build_index_at(self, out: Location, factory: str, overwrite: bool) -> Index:
        assert self._source is not None
        return build(
            self._job(),
            out,
            options=BuildOptions(
                sketch=self.sketch or widest(self._engine.size, len(self._source)),
                index=factory,
                seed=self.seed,
                batch_size=self.batch_size,
                progress=self.verbose,
                overwrite=overwrite,
            ),
        )

    def _job(self) -> Job:
        return Job(
            self.predictor,
            self.loss_fn,
            self._source,
            parameters=self.parameters,
            task=self.task,
            backend=Backend(self._engine.backend),
            device=self.device,
        )

    def _blocks(self, title: str) -> Any:
        assert self._source is not None
        with progress_bar(title, len(self._source), show=self.verbose) as advance:
            for batch, found in exact.gradient_blocks(self._engine, self._source, batch_size=self.batch_size):
                advance(len(batch))
                yield batch, found.gradients

    def _rank_all(self, asked: queries.Queries, k: int | None) -> dict[str, Any]:
        assert self._source is not None
        if k is not None:
            check_k(k, len(self._source))
        most = max(1, queries.MEMORY_BUDGET // (32 * len(self._source)))  # of all values and their orders at once
        parts: list[dict[str, Any]] = []
        for some, gradients, norms in queries.gradient_chunks(self._engine, asked, most):
            batch = Batch(np.arange(some.start, some.stop), take_rows(asked.x, some), take_rows(asked.y, some))
            every = kernels.values(self.sim_fn, *self._dots(batch, gradients, norms), self.eps)
            order = np.argsort(-every, axis=1, kind="stable")[:, :k]
            parts.append({"scores": np.take_along_axis(every, order, 1), "ordered_indices": order})
            if k is not None:
                last = np.argsort(every, axis=1, kind="stable")[:, :k].copy()
                parts[-1] |= {"opponent_scores": np.take_along_axis(every, last, 1), "opponent_indices": last}
                parts[-1]["ordered_indices"] = order.copy()  # a view would keep all n of every chunk
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _dots(
        self, asked: Batch, gradients: Floats, norms: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return inner products (m, n), the queries' norms (m,) and the training norms (n,)."""
        assert self._source is not None
        if self.grad_X_train is not None and self._norms is not None:
            return exact.dots(gradients, self.grad_X_train), norms, self._norms
        dots, train = np.empty((len(norms), len(self._source))), np.empty(len(self._source))
        with progress_bar("Comparing", len(self._source), show=self.verbose) as advance:
            for batch, dots[:, batch.ids], train[batch.ids] in exact.scan(
                self._engine, self._source, asked, gradients, self.batch_size
            ):
                advance(len(batch))
        return dots, norms, train

    def _samples(self, ids: NDArray[np.int64]) -> Tree:
        """Return training inputs at ids (m, s): arrays (m, s, …), or a list of lists of objects."""
        assert self._source is not None

        def take(leaf: Leaf) -> Leaf:
            if isinstance(leaf, list):
                return [[leaf[i] for i in row] for row in ids]
            return as_array(leaf)[ids]

        found = map_leaves(take, self._source.x)
        if isinstance(self.X_train, list) and isinstance(found, np.ndarray):
            return [list(row) for row in found]
        return found
