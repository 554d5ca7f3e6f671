"""What a report says, as plain values for its template."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gradindex import relevance
from gradindex.compute.queries import match_shapes
from gradindex.data.names import Tree
from gradindex.data.text import TokenLoss
from gradindex.defaults import NEIGHBOURS, QUERIES
from gradindex.evaluation.neighbours import neighbour_labels
from gradindex.evaluation.selected import COMMONEST, selected_by
from gradindex.explanation import Explanation
from gradindex.index.index import Index
from gradindex.kernels import WORDING, Kernel, KernelName
from gradindex.plots.read import class_name, short_number
from gradindex.plots.rendering import Rendered, Renderer, data_uri, printable
from gradindex.report.shaded import largest_of, shaded, text_of
from gradindex.search.answer import Found, found_sides
from gradindex.search.white import ESTIMATOR
from gradindex.store.layout import AUDIT
from gradindex.store.location import exists
from gradindex.store.manifest import read_json

_CLASSES = 100  # rows of the table of classes


class Facts:
    """Reads an index for its report.

    Parameters
    ----------
    index
        An index that was opened with its job.
    """

    def __init__(self, index: Index) -> None:
        self.index, self.store, self.job = index, index.store, index.job
        self.render = Renderer(index.job)
        alive = index.store.alive
        self.alive = np.ones(len(index), bool) if alive is None else alive
        metric = index.store.header.metric
        self.gradients = relevance.title(metric, relevance.kernel_of(metric)) in list(Kernel)
        """Whether rows are gradients, and not those of another metric."""

    def card(self) -> list[tuple[str, str]]:
        """Return what model, data and index are."""
        header, engine = self.store.header, self.job.engine
        sketch = dict(header.sketch)
        paths: dict[str, int] = {}
        for parameter in header.parameters:
            paths[parameter.get("path", "unknown")] = paths.get(parameter.get("path", "unknown"), 0) + 1
        removed = int((~self.alive).sum())
        rows = [
            ("Gradient", f"{engine.size:,} numbers of {len(header.parameters)} parameters"),
            ("Computed by", ", ".join(f"{path} ({count})" for path, count in paths.items())),
        ]
        if header.metric is not None:
            rows = [("Metric", str(header.metric["name"])), *(rows if self.gradients else ())]
        return [
            ("Model", f"{type(self.job.model).__name__} ({header.backend}), {header.task}"),
            ("Loss", getattr(self.job.loss_fn, "__name__", type(self.job.loss_fn).__name__)),
            *rows,
            ("Training samples", f"{len(self.index):,}" + (f", {removed:,} of them removed" if removed else "")),
            ("Zero gradients" if self.gradients else "Zero rows", f"{int((self.store.norms == 0).sum()):,}"),
            ("Rows", f"{sketch.pop('kind')}, {header.dim} numbers, seed {header.seed}"),
            ("Search", f"{self.index.searcher.factory} on {self.index.searcher.dim} numbers"),
            *self._whitened(),
            *self._hubs(),
            ("Columns", ", ".join(sorted(self.store.columns))),
            ("Made with", ", ".join(f"{name} {version}" for name, version in header.versions.items())),
        ]

    def _whitened(self) -> list[tuple[str, str]]:
        if not self.index.is_whitened:
            return []
        white = self.index.white
        said = f"{white.store.header.dim} numbers, damping {white.damping:.3g}, {white.searcher.factory}"
        return [("Whitened rows", f"{said}; the second moment is that of {white.moment_rows:,} rows")]

    def _hubs(self) -> list[tuple[str, str]]:
        if self.alive.sum() <= COMMONEST:
            return []
        found = selected_by(self.index)
        queries = min(QUERIES, int(self.alive.sum()))
        said = f"by cosine the nearest of {found.won:.0%} of {queries} samples is one of the {COMMONEST} commonest"
        return [("Hubs", f"{said}; skewness of the {NEIGHBOURS}-occurrences {found.skew:.2f}")]

    def audit(self) -> list[tuple[str, str, str]] | None:
        """Return the lines of the last audit; None if there is none."""
        path = self.store.path / AUDIT
        if not exists(path):
            return None
        saved = read_json(path)
        lines = [
            (f"recall@{saved['k']} with {saved['rerank']} exact checks", "recall"),
            (f"recall@{saved['k']} of the sketch alone", "search_recall"),
            ("rank correlation of the sketch", "rank_correlation"),
        ]
        found = []
        for text, name in lines:
            low, high = saved[f"{name}_interval"]
            found.append((text, f"{saved[name]:.4f}", f"{low:.4f} to {high:.4f}"))
        found.append(("queries", f"{saved['queries']:,}", f"against {saved['rows']:,} rows"))
        return found

    def classes(self) -> list[dict[str, str]]:
        """Return for each class how many samples, how many predicted right, mean loss and median norm."""
        columns = self.store.columns
        if "label" not in columns:
            return []
        labels = columns["label"][self.alive]
        every = np.unique(labels)
        if len(every) > _CLASSES or (labels.dtype.kind == "f" and (every % 1 != 0).any()):
            return []
        found = []
        for one in every:
            here = labels == one
            line = {"class": class_name(self.job.class_names, one), "samples": f"{int(here.sum()):,}"}
            if "prediction" in columns:
                line["predicted right"] = (
                    f"{100 * float((columns['prediction'][self.alive][here] == one).mean()):.1f} %"
                )
            line["mean loss"] = f"{float(columns['loss'][self.alive][here].mean()):.4g}"
            line["median gradient norm" if self.gradients else "median row norm"] = (
                f"{float(np.median(self.store.norms[self.alive][here])):.4g}"
            )
            found.append(line)
        return found

    def kernel(self, result: Explanation) -> str:
        """Return what the scores of an answer are, and which question they answer."""
        name = result.meta["params"]["kernel"]
        if name not in tuple(KernelName):
            return f"Scores are values of {name}; ≈ marks those estimated from sketches."
        words = WORDING[KernelName(name)]
        if words.estimated:
            return f"{words.sentence} Scores are values of {name}, all of them ≈ estimates by {ESTIMATOR}."
        return f"{words.sentence} Scores are values of {name}; ≈ marks those estimated from sketches."

    def neighbours(self, result: Explanation, x: Tree, y: Tree, k: int, rerank: int | None) -> list[dict[str, str]]:
        """Return which labels the k neighbours of labelled queries have by each kernel; none without classes."""
        if not {"query_labels", "query_predictions", "labels"} <= result.data.keys():
            return []
        found = []
        for one in neighbour_labels(self.index, x, y, predicted=False, k=k, rerank=rerank):
            for prediction, shares in (("right", one.right), ("wrong", one.wrong)):
                if shares is not None:
                    parts = {
                        "true label": shares.true,
                        "predicted label": shares.predicted,
                        "neither": shares.neither,
                    }
                    found.append(
                        {"kernel": one.kernel, "prediction": prediction, "queries": f"{shares.queries:,}"}
                        | {name: f"{share:.0%}" for name, share in parts.items()}
                    )
        return found

    def queries(self, result: Explanation, x: Tree, ids: ArrayLike | None) -> list[dict[str, Any]]:
        """Return each query with its neighbours."""
        data, sides = result.data, found_sides(result.data)
        tree = None if x is None else match_shapes(x, None, self.index.example)[0]
        named = None if ids is None else np.atleast_1d(np.asarray(ids)).tolist()
        told = "token_scores" in data
        found = []
        for row in range(len(data["scores"])):
            label, prediction = (self._value(data.get(f"query_{name}s"), row) for name in ("label", "prediction"))
            shown: dict[str, Any] | None
            if told:
                shown = self._own_tokens(result, row)
            elif tree is None and named is None:
                asked = data["query_tokens"]
                some = asked if len(data["scores"]) < len(asked) else [asked[row]]  # of a set, all of it
                shown = {"kind": "text", "value": printable("\n".join(map(text_of, some)))}
            else:
                shown = self._shown(self.render(named[row]) if named is not None else self.render.query(tree, row))
            own = label if label is not None else prediction
            samples = {side.name: list(self._side(side, row, own)) for side in sides}
            if told:
                self._tell_tokens(result, row, samples)
            found.append(
                {
                    "title": f"Training sample {named[row]}" if named is not None else f"Query {row}",
                    "label": self.name(label),
                    "prediction": self.name(prediction),
                    "shown": shown,
                    "proved": all(side.proved is not None and bool(side.proved[row]) for side in sides),
                    **{f"{name}s": some for name, some in samples.items()},
                }
            )
        return found

    @property
    def tells_tokens(self) -> bool:
        """Whether samples are texts, and their loss is made of the losses of tokens."""
        return self.gradients and self.job.texts is not None and isinstance(self.job.loss_fn, TokenLoss)

    @staticmethod
    def _own_tokens(result: Explanation, row: int) -> dict[str, Any]:
        """Return a query's tokens, shaded by what each carries of its proponents' scores on average."""
        found = np.asarray(result.data["token_scores"][row])
        there = np.asarray(result.data["ordered_indices"][row]) >= 0
        scores = found[:, there].mean(axis=1) if there.any() else np.zeros(len(found))
        return shaded(result.data["query_tokens"][row], scores, largest_of([scores]))

    def _tell_tokens(self, result: Explanation, row: int, sides: dict[str, list[dict[str, Any]]]) -> None:
        """Put tokens in the place of the texts that were found, equally dark where they carry as much."""
        carried = [
            (one, result.tokens(place, query=row, side=name))
            for name, samples in sides.items()
            for place, one in enumerate(samples)
        ]
        largest = largest_of([tokens.scores for _, tokens in carried])
        for one, tokens in carried:
            one["shown"] = shaded(tokens.pieces or [], tokens.scores, largest)

    def influential(self, top: int) -> list[dict[str, Any]]:
        """Return the samples with the largest squared gradient norms; none where rows are no gradients."""
        if not self.gradients:
            return []
        values, ids = self.index.self_influence(min(top, int(self.alive.sum())))
        rows = self.store.rows_of(ids)
        found = []
        for value, i, row in zip(values, ids.tolist(), rows, strict=True):
            known = {name: self._value(self.store.columns.get(name), row) for name in ("label", "prediction")}
            found.append(self.sample(i, known, score=short_number(float(value)), exact=True, same=None))
        return found

    def _side(self, side: Found, row: int, own: object) -> Iterator[dict[str, Any]]:
        given = {"label": side.labels, "prediction": side.predictions}
        for place, i in enumerate(side.ids[row].tolist()):
            if i < 0:
                continue
            known = {name: self._value(values, (row, place)) for name, values in given.items()}
            same = None if own is None or known["label"] is None else bool(known["label"] == own)
            exact = side.exact is not None and bool(side.exact[row, place])
            yield self.sample(i, known, score=short_number(float(side.scores[row, place])), exact=exact, same=same)

    def sample(self, i: int, known: dict[str, object], **more: object) -> dict[str, Any]:
        """Return a training sample as a card shows it; `known` holds its label and prediction."""
        names = {name: self.name(value) for name, value in known.items()}
        return {"id": i, "shown": self._shown(self.render(i)), **names, **more}

    def held_out(self, x: Tree, row: int, known: dict[str, object]) -> dict[str, object]:
        """Return a sample that is not in the dataset, a row of inputs `x`, as `sample` does."""
        return {
            "shown": self._shown(self.render.query(x, row)),
            **{name: self.name(one) for name, one in known.items()},
        }

    def _shown(self, shown: Rendered | None) -> dict[str, object] | None:
        if shown is None:
            return None
        value = data_uri(shown.value, *self.render.shades) if shown.kind == "image" else shown.value
        return {"kind": shown.kind, "value": value}

    def name(self, value: object) -> str | None:
        """Return the name of a class; None of none."""
        return None if value is None else class_name(self.job.class_names, value)

    @staticmethod
    def _value(values: Any, place: Any) -> Any:
        return None if values is None else np.asarray(values)[place]
