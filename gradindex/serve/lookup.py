"""The work behind the routes: batches of tasks to answers, by the public interface of the index."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradindex import relevance
from gradindex.data.labels import as_array
from gradindex.data.source import is_ragged
from gradindex.index.index import Index
from gradindex.kernels import WORDING, Kernel, KernelName, WhiteKernel
from gradindex.plots.read import class_name
from gradindex.plots.rendering import Rendered as Shown
from gradindex.plots.rendering import Renderer, data_uri, printable
from gradindex.runtime import stages as runtime_stages
from gradindex.runtime.stages import Interval
from gradindex.search.answer import Found, expected_recalls, found_sides
from gradindex.search.options import SearchOptions
from gradindex.serve import models, uploads
from gradindex.serve.batching import Task
from gradindex.serve.inputs import concatenate
from gradindex.sketch import bounds_cosine
from gradindex.store import Store

log = logging.getLogger(__name__)
_CACHED = 2048  # rendered samples
_CLASSES = 1000
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Where:
    """A filter; equal ones have the same `text`."""

    text: str
    value: Any = field(compare=False)


@dataclass(frozen=True)
class Explain:
    """Options that queries of one batch have in common: `lookup` is the number of the index that they are put to.

    `given` is how they came, `alone` keeps others away.
    """

    lookup: int
    search: SearchOptions
    where: Where
    given: str
    alone: int = 0


@dataclass(frozen=True)
class Search:
    """Options that vectors of one batch have in common; `lookup` as in `Explain`."""

    lookup: int
    k: int
    where: Where


@dataclass(frozen=True)
class Queries:
    """A request's queries, put to `lookup`: `ids`, `texts`, or inputs `x`, with labels `y` or without."""

    lookup: "Lookup"
    ids: NDArray[np.int64] | None = None
    x: Any = None
    y: Any = None
    texts: tuple[str, ...] = ()
    render: bool = False


@dataclass(frozen=True)
class Vectors:
    """A request's embeddings (m, dim) float32, put to `lookup`."""

    lookup: "Lookup"
    rows: NDArray[np.float32]


class Lookup:
    """Answers batches; every method runs in the one thread that may use the model and the dataset."""

    def __init__(self, index: Index) -> None:
        self.index, self.number = index, next(_NUMBERS)
        self._renderer = Renderer(index.job)
        self._form: tuple[uploads.PictureForm | None] | None = None
        self._info: tuple[Store, bool, models.IndexInfo] | None = None
        self._rendered: OrderedDict[int, models.Rendered | None] = OrderedDict()

    @property
    def store(self) -> Store:
        """The store in its present state: rows may have been added or removed since the start."""
        return self.index.store

    @property
    def renderer(self) -> Renderer:
        """What samples look like, the added ones included."""
        if self._renderer.job is not self.index.job:
            self._renderer = Renderer(self.index.job)
        return self._renderer

    def warm(self) -> None:
        """Answer a query, so that the first one that counts does not wait for compilation."""
        some = self.store.ids[:2]
        try:
            self.index.explain(ids=some, options=SearchOptions(k=1, rerank=1))
        except OSError as error:  # of a dataset of files: a sample that is gone matters to those who ask for it
            log.warning("the first samples cannot be read: %s", error)
        self.index.search(np.eye(1, self.store.header.dim, dtype=np.float32), 1)
        _ = self.info, self.renderer.shades

    def explain(
        self, options: Explain, tasks: Sequence[Task], intervals: list[Interval] | None = None
    ) -> list[dict[str, Any]]:
        """Return one dict of answers and timing a task, from a single call of `Index.explain`.

        `intervals` gets when its stages began and ended.
        """
        asked: list[Queries] = [task.payload for task in tasks]
        how: dict[str, Any] = {"options": options.search, "where": options.where.value}
        with runtime_stages.recorded(intervals) as stages:
            if asked[0].ids is not None:
                found = self.index.explain(ids=np.concatenate([one.ids for one in asked if one.ids is not None]), **how)
            elif asked[0].texts:
                found = self.index.explain(text=[text for one in asked for text in one.texts], **how)
            else:
                y = None if asked[0].y is None else concatenate([one.y for one in asked])
                found = self.index.explain(concatenate([one.x for one in asked]), y, **how)
            begin, answers = 0, []
            for task, one in zip(tasks, asked, strict=True):
                rows = range(begin, begin + task.size)
                with runtime_stages.stage("render"):
                    answers.append([self._answer(found.data, row, one, row - begin) for row in rows])
                begin += task.size
        params = found.meta["params"]
        common = {
            "kernel": str(params["kernel"]),
            "rerank": params["rerank"],
            "rows": params["rows"],
            "selected": params["selected"],
            "recall": params.get("recall"),
        }
        return [
            common | {"answers": answer, "waited": task.waited, "stages": stages, "batch": begin}
            for task, answer in zip(tasks, answers, strict=True)
        ]

    def search(
        self, options: Search, tasks: Sequence[Task], intervals: list[Interval] | None = None
    ) -> list[dict[str, Any]]:
        """Return ids and scores a task, from a single call of `Index.search`; `intervals` as in `explain`."""
        with runtime_stages.recorded(intervals) as stages, runtime_stages.stage("search"):
            scores, ids = self.index.search(
                np.concatenate([task.payload.rows for task in tasks]), options.k, where=options.where.value
            )
        out, begin = [], 0
        for task in tasks:
            rows = range(begin, begin + task.size)
            found = [ids[row] >= 0 for row in rows]
            out.append(
                {
                    "ids": [ids[row][there].tolist() for row, there in zip(rows, found, strict=True)],
                    "scores": [scores[row][there].tolist() for row, there in zip(rows, found, strict=True)],
                    "waited": task.waited,
                    "stages": stages,
                }
            )
            begin += task.size
        return [one | {"batch": begin} for one in out]

    def items(self, ids: Sequence[int]) -> list[models.Item]:
        """Return training samples; raises IndexError for an unknown id."""
        rows = self.store.rows_of(np.asarray(ids, np.int64))
        return [self._item(int(i), int(row)) for i, row in zip(ids, rows, strict=True)]

    def listing(self, offset: int, limit: int, label: object) -> tuple[int, NDArray[np.int64]]:
        """Return how many samples are there (with `label`, if given), and the ids of some of them."""
        alive = np.ones(len(self.store), bool) if self.store.alive is None else self.store.alive
        if label is not None and "label" in self.store.columns:
            alive = alive & (self.store.columns["label"] == label)
        rows = np.flatnonzero(alive)
        return len(rows), self.store.ids[rows[offset : offset + limit]]

    @property
    def info(self) -> models.IndexInfo:
        """What is served; found out anew when rows changed or were whitened. The application fills in the limits."""
        store, whitened = self.store, self.index.is_whitened
        if self._info is None or self._info[0] is not store or self._info[1] != whitened:
            self._info = store, whitened, self._describe(store)
        return self._info[2]

    def _kernels(self) -> list[str]:
        """Return the kernels that can be asked for: of gradients and whitened rows, or the metric alone."""
        metric = self.store.header.metric
        default = relevance.title(metric, relevance.kernel_of(metric))
        if metric is not None and default == metric["name"]:
            return [default]
        white = list(WhiteKernel) if self.index.is_whitened else []
        return [kernel.value for kernel in (*Kernel, *white)]

    def _describe(self, store: Store) -> models.IndexInfo:
        from gradindex._version import __version__

        header, columns = store.header, store.columns
        metric = None if header.metric is None else str(header.metric["name"])
        kernels = self._kernels()
        classes = np.unique(columns["label"]) if "label" in columns else np.empty(0)
        names = self.index.job.class_names
        return models.IndexInfo(
            samples=len(store),
            removed=0 if store.alive is None else int((~store.alive).sum()),
            dim=header.dim,
            factory=self.index.searcher.factory,
            sketch=header.sketch,
            parameters=self.index.job.engine.size,
            task=str(header.task),
            backend=header.backend,
            columns=sorted(columns),
            classes=plain(classes.tolist()) if len(classes) <= _CLASSES else [],
            class_names=None if names is None else [printable(str(name)) for name in names],
            input=self._input(),
            metric=metric,
            kernels=kernels,
            kernel=relevance.title(header.metric, relevance.kernel_of(header.metric)),
            wording={
                name: models.KernelWording(**asdict(WORDING[KernelName(name)]))
                for name in kernels
                if name in tuple(KernelName)
            },
            certifiable=bounds_cosine(header.sketch),
            max_k=0,
            max_queries=0,
            max_body=0,
            version=__version__,
        )

    @property
    def form(self) -> uploads.PictureForm | None:
        """How pictures become inputs."""
        if self._form is None:
            self._form = (uploads.picture_form(self.renderer, self.index.example.x),)
        return self._form[0]

    def _input(self) -> dict[str, Any]:
        x, job = self.index.example.x, self.index.job
        takes = {"prepares": job.prepare is not None, "tokenizer": job.texts is not None}
        if isinstance(x, dict | tuple):
            parts = x.items() if isinstance(x, dict) else enumerate(x)
            return takes | {"kind": "parts", "parts": [printable(str(name)) for name, _ in parts]}
        if is_ragged(x):
            return takes | {"kind": "array", "shape": [None, *as_array(x[0]).shape[1:]]}
        if isinstance(x, list):
            return takes | {"kind": "text" if isinstance(x[0], str) else "object"}
        found = takes | {"kind": "array", "shape": list(as_array(x).shape[1:])}
        form = self.form
        if form is None:
            return found | {"picture": None, "low": self.renderer.shades[0], "high": self.renderer.shades[1]}
        picture = {"picture": list(form.shape), "low": form.low, "high": form.high}
        return found | picture | {"why_no_picture": form.why_not}

    def read(self, data: bytes) -> models.OwnInput:
        """Return what a file holds as a query; raises BadInput."""
        found = uploads.read(data, self.index.job, self.index.example.x, self.form)
        return models.OwnInput(pixels=uploads.base64_of(found.pixels), input=found.sample, note=found.note)

    def _answer(self, data: dict[str, Any], row: int, asked: Queries, place: int) -> models.Answer:
        known: dict[str, Any] = {
            name: data[f"query_{name}s"][row] for name in ("label", "prediction") if f"query_{name}s" in data
        }
        proponents, opponents = found_sides(data)
        one = None if asked.ids is None else int(asked.ids[place])
        shown = None
        if asked.render:
            if asked.texts:
                shown = models.Rendered(kind="text", data=asked.texts[place], shape=None)
            else:
                shown = self.rendered(one) if one is not None else self._show(self.renderer.query(asked.x, place))
        return models.Answer(
            query=models.Sample(id=one, rendered=shown, **self._named(known)),
            proponents=self._side(proponents, row, asked.render),
            opponents=self._side(opponents, row, asked.render),
            proved=all(side.proved is not None and bool(side.proved[row]) for side in (proponents, opponents)),
            checked=int(data["checked"][row]),
            expected_recall=min(found) if (found := expected_recalls(data, row)) else None,
        )

    def _side(self, side: Found, row: int, render: bool) -> list[models.Neighbour]:
        found = []
        table = {} if side.columns is None else side.columns.line(row).to_json()
        given = {"label": side.labels, "prediction": side.predictions}
        for place, i in enumerate(side.ids[row].tolist()):
            if i < 0:
                continue
            known: dict[str, Any] = {name: some[row, place] for name, some in given.items() if some is not None}
            columns = {name: values[place] for name, values in table.items()}
            found.append(
                models.Neighbour(
                    id=i,
                    score=float(side.scores[row, place]),
                    exact=side.exact is not None and bool(side.exact[row, place]),
                    columns=columns,
                    rendered=self.rendered(i) if render else None,
                    **self._named(known),
                )
            )
        return found

    def _item(self, i: int, row: int) -> models.Item:
        columns = self.store.columns
        known: dict[str, Any] = {name: columns[name][row] for name in ("label", "prediction") if name in columns}
        own = columns.take(np.array([row]), self.store.header.columns).to_json()
        return models.Item(
            id=i,
            loss=float(columns["loss"][row]) if "loss" in columns else None,
            norm=float(self.store.norms[row]),
            removed=self.store.alive is not None and not self.store.alive[row],
            columns={name: values[0] for name, values in own.items()},
            rendered=self.rendered(i),
            **self._named(known),
        )

    def _named(self, known: dict[str, object]) -> dict[str, Any]:
        names = self.index.job.class_names
        out: dict[str, Any] = {}
        for kind, value in known.items():
            out[kind] = plain(value)
            if names is not None and (name := class_name(names, value)) != class_name(None, value):
                out[f"{kind}_name"] = name
        return out

    def rendered(self, i: int) -> models.Rendered | None:
        """Return what a training sample looks like, from memory if it was shown lately."""
        if i not in self._rendered:
            found = self.renderer(i)
            if found is not None and found.failed:  # the file may come back
                return self._show(found)
            self._rendered[i] = self._show(found)
            if len(self._rendered) > _CACHED:
                self._rendered.popitem(last=False)
        self._rendered.move_to_end(i)
        return self._rendered[i]

    def _show(self, shown: Shown | None) -> models.Rendered | None:
        if shown is None:
            return None
        if shown.kind == "image":
            low, high = self.renderer.shades
            shape = list(shown.value.shape[:2])
            return models.Rendered(kind="image", data=data_uri(shown.value, low, high), shape=shape)
        value = shown.value if shown.kind == "text" else {name: plain(entry) for name, entry in shown.value.items()}
        return models.Rendered(kind="text" if shown.kind == "text" else "table", data=value, shape=None)


def plain(value: object) -> Any:
    """Return a value as JSON has it: numbers and strings as they are, NaN and infinity as None, the rest as text."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    return value if value is None or isinstance(value, bool | int) else str(value)
