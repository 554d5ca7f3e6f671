"""Building a store on disk, shard by shard, with the FAISS index over its rows."""

import time
from pathlib import Path

from gradindex.ann import build as indexing
from gradindex.ann import files as index_files
from gradindex.ann import plan as index_plan
from gradindex.errors import FinishedError, IndexExistsError, OtherSamplesError
from gradindex.gradients import in_double
from gradindex.job import Job
from gradindex.lifecycle.executor import Cluster, ThisProcess
from gradindex.lifecycle.header import begun, header
from gradindex.lifecycle.options import BuildOptions
from gradindex.lifecycle.summary import BuildSummary, count_paths, peak_bytes
from gradindex.runtime import forking
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.store import Header, Store
from gradindex.store import replace as store_replace
from gradindex.store.location import Location, locate


def build(
    job: Job, out: str | Location, options: BuildOptions, engine: Cluster | None = None
) -> tuple[Header, BuildSummary]:
    """Embed a job's dataset into a store at `out` and build its FAISS index; see `gradindex.build`.

    Returns the header of the store, and what was done. Another process may have put another store in its place by then:
    whoever opens it compares the seals.
    """
    out = locate(out)
    forking.settle(job.backend)
    replaced = options.overwrite and store_replace.begin(out)
    target = store_replace.aside(out) if replaced else out
    wanted = header(job, options, begun(target))
    index, _ = index_plan.plan(
        wanted, options.index, memory=options.index_memory
    )  # a mistake here should not cost an embedding
    if replaced:
        try:
            return _replace(job, Path(out), wanted, index, options, engine)
        except OtherSamplesError as error:  # an unfinished replacement, which is to be replaced as well
            log.info("%s What was begun is deleted.", error)
            store_replace.discard(Path(out))
        return _replace(job, Path(out), wanted, index, options, engine)
    store = Store.create(out, wanted)
    if not store.missing() and index_files.exists(store):
        same = not store.state.number and index_files.saved_factory(store) == index
        raise (FinishedError if same else IndexExistsError)(
            f"{out} already holds an index of {len(store)} samples. Open it with gradindex.load, give another "
            "directory, or overwrite it (overwrite=True, --overwrite)."
        )
    return store.header, _fill(job, store, index, options.progress, engine)


def _replace(
    job: Job, out: Path, wanted: Header, index: str, options: BuildOptions, engine: Cluster | None
) -> tuple[Header, BuildSummary]:
    with store_replace.replacement(out, wanted) as new:
        summary = _fill(job, new, index, options.progress, engine)
    return new.header, summary


def _refuse_zeros(job: Job, store: Store) -> None:
    """Raise ValueError if all gradients are zero: there is nothing to compare."""
    if job.metric is None and not store.norms.any():
        raise ValueError(
            f"The gradients of all {len(store)} samples are zero. Does the loss compare the samples of a batch with "
            "each other (contrastive losses do)? Of ONE sample, which is what gradients are taken of, it then says "
            "nothing: compare each sample with a fixed set of others instead."
        )


def _fill(job: Job, store: Store, index: str, progress: bool | None, engine: Cluster | None) -> BuildSummary:
    """Embed what is missing and build the index, here or on the workers of an engine."""

    def state() -> str:
        return f"{store.header.shards - len(store.missing())} of {store.header.shards} shards are published"

    with stop_on_sigterm(), explain_full_disk(state):
        began = time.perf_counter()
        executor = ThisProcess(job, store) if engine is None else engine.workers_of(job, store)
        with executor as workers:
            embedded = workers.embed_missing(progress)
            middle = time.perf_counter()
            _refuse_zeros(job, store)
            with progress_bar("Indexing", len(store), show=progress) as advance:
                indexing.build(store, index, store.header.seed, advance, workers.add)
    if zeros := int((store.norms == 0).sum()):
        log.warning("%d samples have a gradient of zero; their cosine with anything is 0", zeros)
    if (rounded := in_double.share_rounded(job, store.columns["loss"], store.header.batch_size)) >= 0.05:
        log.warning(
            "rounding changes the gradients of about %.0f %% of the samples by more than 5 %%, as the model is sure "
            "of them: have the model return logits, and wrap the loss in gradindex.InDouble",
            100 * rounded,
        )
    return BuildSummary(
        rows=len(store),
        embedded=embedded,
        embedding_seconds=middle - began,
        indexing_seconds=time.perf_counter() - middle,
        peak_bytes=peak_bytes(),
        store_bytes=store.bytes,
        index_bytes=index_files.size(store),
        paths=count_paths(job.engine.paths),
    )
