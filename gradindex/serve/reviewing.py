"""The review, the decisions and the map of a served index, and the files beside it that keep them."""

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from gradindex._version import __version__
from gradindex.defaults import NEIGHBOURS, SEED
from gradindex.plots.read import class_name
from gradindex.review import Decision, Finding, Kind, beside
from gradindex.review.decision_log import DecisionLog, Entry, as_csv, as_json_lines
from gradindex.review.found import MEANING, OF_TRAINING, TITLES
from gradindex.review.kept import Kept, as_parquet, undecided
from gradindex.review.making import STAGES, review
from gradindex.review.projection import Projection, project
from gradindex.serve import review_models as models
from gradindex.serve.background import Background, Stopped
from gradindex.serve.batching import Closed, Full
from gradindex.serve.lookup import Lookup
from gradindex.serve.settings import Settings
from gradindex.store import Store
from gradindex.words import Task

log = logging.getLogger(__name__)
T = TypeVar("T")
_AGAIN = 0.2  # seconds, while too much is waiting


class Submit(Protocol):
    """Queues work for the thread that may use the model and the dataset."""

    def __call__(self, work: Callable[[], T]) -> "Future[T]":
        """Return the work's future; raises Full or Closed."""


class Reviewing:
    """What the service knows beyond lookups.

    Parameters
    ----------
    lookup
        Returns the index that answers at present, and what its samples look like.
    settings
        Those of the service.
    submit
        Queues work for the thread that may use the model and the dataset.
    """

    def __init__(self, lookup: Callable[[], Lookup], settings: Settings, submit: "Submit") -> None:
        self._served, self.settings, self._submit = lookup, settings, submit
        self.review: Background[Kept] = Background("review", STAGES)
        self.map: Background[Projection] = Background("map", ["projection"])
        store = self.store
        self.folder = settings.review_dir
        self.why_read_only = "This service was started with --read-only." if settings.read_only else ""
        if self.folder is None:
            try:
                self.folder = beside.directory(store.path)
            except ValueError:
                self.why_read_only = self.why_read_only or (
                    "Decisions on an index behind a URL are kept on this machine: start the service with --review-dir."
                )
        self._decisions = DecisionLog(beside.decisions_path(self.folder or Path(), store))

    @property
    def lookup(self) -> Lookup:
        """The index in its present state, and what its samples look like."""
        return self._served()

    @property
    def decisions(self) -> DecisionLog:
        """The decisions on the samples of the present index: another build has others."""
        path = beside.decisions_path(self.folder or Path(), self.store)
        if self._decisions.path != path:
            self._decisions = DecisionLog(path)
        return self._decisions

    @property
    def store(self) -> Store:
        """The store in its present state."""
        return self.lookup.store

    def close(self) -> None:
        """Let work in the background end at its next step."""
        self.review.stopping = self.map.stopping = True

    def turn(self, work: Callable[[], T]) -> T:
        """Run a piece of work in the thread that may use the model, between the lookups that wait for it."""
        while True:
            try:
                return self._submit(work).result()
            except Full:
                time.sleep(_AGAIN)
            except Closed as error:
                raise Stopped from error

    # The review

    def _review_key(self) -> str:
        made = {"top": self.settings.review_top, "k": NEIGHBOURS, "seed": SEED, "version": __version__}
        return beside.tag(self.store, {"review": made})

    def find_review(self) -> Kept | None:
        """Return the review of the present state, if it is there, in memory or on the disk."""
        key = self._review_key()
        found = self.review.of(key)
        if found is None and self.folder is not None and (path := self.folder / f"review.{key}.parquet").is_file():
            try:
                found = Kept(path)
                self.review.hold(key, found)
            except (ValueError, OSError) as error:
                log.warning("the review in %s is made anew: %s", path, error)
        return found

    def start_review(self) -> None:
        """Begin to make the review, unless it is there or being made."""
        key = self._review_key()
        if self.find_review() is None:
            index = copy.copy(self.lookup.index)  # holds its state, whatever is removed meanwhile
            k = min(NEIGHBOURS, len(index))

            def make(say: Callable[[str], None]) -> Kept:
                found = review(index, top=self.settings.review_top, k=k, turn=self.turn, say=say)
                return Kept(self._publish(f"review.{key}.parquet", as_parquet(found)))

            self.review.start(key, make)

    def _publish(self, name: str, data: bytes) -> "Path | bytes":
        """Keep a file beside the store; where that cannot be written, return the data itself."""
        if self.folder is None:
            return data
        try:
            return beside.publish(self.folder, name, data)
        except OSError as error:
            log.warning("%s is kept in memory alone: %s", name, error)
            return data

    def status(self) -> models.ReviewStatus:
        """Return what there is to look at."""
        kept, key = self.find_review(), self._review_key()
        standing = self.decisions.all_standing()
        found = models.ReviewStatus(
            making=self.review.making(key),
            read_only=bool(self.why_read_only),
            why_read_only=self.why_read_only,
            generation=beside.generation(self.store),
            decided=len(standing),
            next=self.decisions.end,
            damaged=self.decisions.damaged,
        )
        if kept is None:
            return found
        decided = np.fromiter(standing, np.int64, len(standing))
        for kind in OF_TRAINING:
            ids = kept.ids(kind)
            left = undecided(ids, decided)
            found.kinds.append(
                models.KindOfLines(
                    kind=kind,
                    title=TITLES[kind],
                    meaning=MEANING[kind],
                    total=len(ids),
                    decided=int((ids >= 0).sum()) - len(left),
                    first_open=int(left[0]) if len(left) else None,
                )
            )
        found.left_out = kept.left_out
        found.precision_from = str(kept.about.get("precision_from") or "")
        return found

    def rows(self, kept: Kept, kind: Kind, offset: int, limit: int) -> models.ReviewRows:
        """Return some lines with their samples; runs in the thread that may use the dataset."""
        lines = kept.lines(kind, offset, limit)
        return models.ReviewRows(
            kind=kind,
            total=kept.counts[kind],
            offset=offset,
            rows=[self._row(place, one) for place, one in enumerate(lines, offset)],
        )

    def _row(self, place: int, one: Finding) -> models.ReviewRow:
        pair = [] if one.id is not None else [self.name(label) or "" for label in (one.label, one.prediction)]
        return models.ReviewRow(
            place=place,
            id=one.id,
            score=one.score,
            proposed=one.proposed,
            proposed_name=self.name(one.proposed),
            precision=one.precision,
            note=one.note,
            classes=pair,
            sample=None if one.id is None else self.lookup.items([one.id])[0],
            neighbours=self.lookup.items(one.neighbours) if one.neighbours else [],
            decided=None if one.id is None else self.decided(one.id),
        )

    def name(self, label: int | None) -> str | None:
        """Return the name of a class."""
        if label is None:
            return None
        names = self.lookup.index.job.class_names
        return class_name(None if names is None else list(names), label)

    # Decisions

    def check(self, sample: int, decision: Decision, label: int | None) -> None:
        """Compare a decision with the index.

        Raises
        ------
        IndexError
            If the index does not hold the sample.
        ValueError
            If the label is none of its classes, or is missing or too much.
        """
        if not self.store.holds(np.array([sample]))[0]:
            raise IndexError(f"Id {sample} is out of range for an index of {len(self.store)} samples.")
        if decision is not Decision.RELABEL:
            if label is not None:
                raise ValueError(f"label: relabel alone takes one, {decision} takes none.")
            return
        job, columns = self.lookup.index.job, self.store.columns
        if job.task != Task.CLASSIFICATION or "label" not in columns:
            raise ValueError("label: these samples have no classes, so none can be given another one.")
        named = label is not None and 0 <= label < len(job.class_names or ())
        if label is None or not (named or (columns["label"] == label).any()):
            raise ValueError(f"label: {label} is none of the classes.")

    def decided(self, sample: int, entry: Entry | None = None) -> models.Decided:
        """Return what stands on a sample."""
        standing = self.decisions.standing(sample)
        return models.Decided(
            entry=None if entry is None else self.shown(entry),
            standing=None if standing is None else self.shown(standing),
            differing=[self.shown(one) for one in self.decisions.differing(sample)],
        )

    def shown(self, entry: Entry) -> models.DecisionEntry:
        """Return a line of the file of decisions with the name of its label."""
        return models.DecisionEntry(**asdict(entry), label_name=self.name(entry.label))

    def export(self, form: str) -> str:
        """Return the decisions that stand, as `gradindex remove --decisions` reads them: CSV or JSON lines."""
        standing = self.decisions.all_standing()
        return as_csv(standing) if form == "csv" else as_json_lines(standing)

    # The map

    def _map_key(self) -> str:
        made = {"most": self.settings.map_points, "way": self.settings.map_way, "seed": SEED, "version": __version__}
        return beside.tag(self.store, {"map": made})

    def find_map(self) -> Projection | None:
        """Return the map of the present state, if it is there, in memory or on the disk."""
        key = self._map_key()
        found = self.map.of(key)
        if found is None and self.folder is not None and (path := self.folder / f"map.{key}.npz").is_file():
            try:
                found = Projection.read(path)
                self.map.hold(key, found)
            except (ValueError, OSError) as error:
                log.warning("the map in %s is made anew: %s", path, error)
        return found

    def start_map(self) -> None:
        """Begin to make the map, unless it is there or being made."""
        key, store = self._map_key(), self.store
        if self.find_map() is None:

            def make(say: Callable[[str], None]) -> Projection:
                say("projection")
                found = project(store, most=self.settings.map_points, way=self.settings.map_way)
                self._publish(f"map.{key}.npz", found.to_bytes())
                return found

            self.map.start(key, make)

    def map_status(self) -> models.MapStatus:
        """Return whether there is a map."""
        found = self.find_map()
        alive = len(self.store) if self.store.alive is None else int(self.store.alive.sum())
        return models.MapStatus(
            making=self.map.making(self._map_key()),
            generation=beside.generation(self.store),
            points=min(alive, self.settings.map_points) if found is None else len(found.ids),
        )

    def points(self, found: Projection) -> models.MapPoints:
        """Return the points with what they are coloured by."""
        store, standing = self.store, self.decisions.all_standing()
        rows = store.rows_of(found.ids)
        labels = store.columns["label"][rows] if "label" in store.columns else None
        return models.MapPoints(
            ids=found.ids.tolist(),
            x=found.places[:, 0].astype(np.float64).round(4).tolist(),
            y=found.places[:, 1].astype(np.float64).round(4).tolist(),
            labels=None if labels is None else [float(one) if np.isfinite(one) else None for one in labels],
            norms=[float(one) for one in np.nan_to_num(store.norms[rows])],
            decisions=[standing[i].decision if i in standing else None for i in found.ids.tolist()],
            of=int(str(found.about["of"])),
            way=str(found.about["way"]),
            explained=float(str(found.about["explained"])),
        )
