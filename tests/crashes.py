"""Every state of a disk that a loss of power may leave, by recording operations and replaying parts of them.

The method of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018), over the package's own layer,
`gradindex.store.disk`. POSIX promises little: what was written to a file is there once the file was flushed, a name
once its directory was. Of everything else any part may be lost. So after each operation the disk is in one of the
states that come of the flushed operations and any subset of the others, in their order. In some more of these one
operation is torn: a file that was not flushed ends at a block or half-way, or holds zeros from there on; a renaming of
a file, which else has happened or has not, has left both names.
"""

import contextlib
import itertools
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from gradindex.store import disk

BLOCK = 4096
ALL_SUBSETS, DRAWN = 10, 1000  # of up to so many operations all subsets, else so many


@dataclass(eq=False)
class Inode:
    """A file's contents, or (None) a directory's names."""

    data: bytes | None = None
    names: dict = field(default_factory=dict)


@dataclass(eq=False)
class Write:
    """The contents of a file, which may be lost until the file is flushed."""

    file: Inode
    data: bytes

    @property
    def needs(self):
        return {self.file}

    def torn(self):
        """Return what else the file may hold."""
        size = len(self.data)
        cuts = sorted({0, size // 2, *range(0, size, BLOCK)[:2], *range(0, size, BLOCK)[-1:]})
        return [self.data[:cut] + bytes(rest) for cut in cuts for rest in (0, size - cut)]


@dataclass(eq=False)
class Names:
    """Names that are given and taken in one step: (directory, name, inode or None)."""

    changes: list

    @property
    def needs(self):
        return {directory for directory, _, _ in self.changes}

    def torn(self):
        """Return what else a renaming of a file may leave: both names."""
        given = [change for change in self.changes if change[2] is not None]
        return [Names(given)] if len(given) == 1 < len(self.changes) and given[0][2].data is not None else []


@dataclass
class Sync:
    """All that was done to an inode is on the disk."""

    inode: Inode


@dataclass
class Mark:
    """The caller was told that it is done: from here on it has to hold."""

    name: str


class Recorder:
    """Records what `gradindex.store.disk` does below a directory, which may hold something already."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self.log: list = []
        self._lock = threading.RLock()
        self.start = _read(self.root)
        self._twins: dict = {}
        self._now = _copy(self.start, self._twins)

    def mark(self, name: str) -> None:
        """Note that what was asked for is done."""
        self.log.append(Mark(name))

    @contextlib.contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Record what is done in the block."""
        with contextlib.ExitStack() as patches:
            for name in ("write", "sync", "mkdir", "link", "rename", "rename_new", "exchange", "unlink", "rmdir"):
                patches.enter_context(mock.patch.object(disk, name, self._recorded(name, getattr(disk, name))))
            yield self

    def _recorded(self, name, real):
        def act(*arguments):
            with self._lock:
                inside = [Path(one) for one in arguments[: 1 if name == "write" else None]]
                here = all(self.root in one.parents or one == self.root for one in inside)
                if here and name in ("sync", "link", "rename", "rename_new"):
                    self._meet(inside[0])  # files that FAISS, Arrow and NumPy wrote
                real(*arguments)
                if here:
                    getattr(self, f"_{name}")(*inside)

        return act

    def _place(self, path):
        inode = self._now
        for part in path.relative_to(self.root).parts[:-1]:
            inode = inode.names[part]
        return inode, path.name

    def _find(self, path):
        if path == self.root:
            return self._now
        directory, name = self._place(path)
        return directory.names.get(name)

    def _meet(self, path):
        if self._find(path) is None:
            self._write(path)

    def _write(self, path):
        file = Inode(b"")
        self._give([(*self._place(path), file)])
        self.log.append(Write(file, path.read_bytes()))

    def _give(self, changes):
        self.log.append(Names(changes))
        for directory, name, inode in changes:
            if inode is None:
                directory.names.pop(name, None)
            else:
                directory.names[name] = inode

    def _sync(self, path):
        self.log.append(Sync(self._find(path)))

    def _mkdir(self, path):
        self._give([(*self._place(path), Inode())])

    def _link(self, source, target):
        self._give([(*self._place(target), self._find(source))])

    def _rename(self, source, target):
        self._give([(*self._place(target), self._find(source)), (*self._place(source), None)])

    _rename_new = _rename

    def _exchange(self, one, other):
        found = self._find(one), self._find(other)
        self._give([(*self._place(one), found[1]), (*self._place(other), found[0])])

    def _unlink(self, path):
        if self._find(path) is not None:
            self._give([(*self._place(path), None)])

    _rmdir = _unlink

    def states(self, rng: random.Random, most: int | None = None) -> Iterator[tuple[tuple[str, str], dict]]:
        """Yield the disk after every prefix: (last mark, next mark) and contents by path, None for a directory.

        At most `most` for a prefix, drawn; None: all of them. Equal states of one prefix come once.
        """
        marks = ["", *(one.name for one in self.log if isinstance(one, Mark))]
        marks.append(marks[-1])
        done = []  # operations so far, and whether they are safe
        passed = 0
        for event in (None, *self.log):
            if isinstance(event, Mark):
                passed += 1
            elif isinstance(event, Sync):
                done = [(op, needs - {event.inode}) for op, needs in done]
            elif event is not None:
                done.append((event, set(event.needs)))
            seen = set()
            for chosen in _choices(done, rng, most):
                tree = self._replay(chosen)
                key = frozenset((name, data) for name, data in tree.items())
                if key not in seen:
                    seen.add(key)
                    yield (marks[passed], marks[passed + 1]), tree

    def _replay(self, chosen):
        twins: dict = {}
        top = _copy(self.start, twins)
        of = {id(now): twins[old] for old, now in self._twins.items()}

        def here(inode):
            if id(inode) not in of:
                of[id(inode)] = Inode(inode.data)
            return of[id(inode)]

        for op in chosen:
            if isinstance(op, Write):
                here(op.file).data = op.data
            else:
                for directory, name, inode in op.changes:
                    if inode is None:
                        here(directory).names.pop(name, None)
                    else:
                        here(directory).names[name] = here(inode)
        return _flat(top)


def _choices(done, rng, most):
    """Yield operations that may be on the disk, in their order."""
    loose = [place for place, (_, needs) in enumerate(done) if needs]
    if len(loose) <= ALL_SUBSETS:
        subsets = [set(some) for size in range(len(loose) + 1) for some in itertools.combinations(loose, size)]
    else:
        subsets = [set(loose), set(), *({p for p in loose if rng.random() < 0.5} for _ in range(DRAWN - 2))]
    torn = [(place, part) for place in loose for part in _torn(done[place][0])]
    wanted = [(some, None) for some in subsets]
    wanted += [(some, one) for one in torn for some in (set(loose), *rng.sample(subsets, min(2, len(subsets))))]
    if most is not None and len(wanted) > most:
        wanted = [wanted[0], *rng.sample(wanted[1:], most - 1)]
    for some, part in wanted:
        kept = {place: done[place][0] for place in range(len(done)) if not done[place][1] or place in some}
        if part is not None:
            kept[part[0]] = part[1]
        yield [kept[place] for place in sorted(kept)]


def _torn(op):
    return [Write(op.file, data) for data in op.torn()] if isinstance(op, Write) else op.torn()


def _read(path):
    if path.is_dir():
        return Inode(None, {one.name: _read(one) for one in sorted(path.iterdir())})
    return Inode(path.read_bytes())


def _copy(inode, twins):
    twin = twins[inode] = Inode(inode.data)
    twin.names = {name: _copy(one, twins) for name, one in inode.names.items()}
    return twin


def _flat(inode, prefix=""):
    found = {}
    for name, one in inode.names.items():
        found[prefix + name] = one.data
        if one.data is None:
            found |= _flat(one, f"{prefix}{name}/")
    return found


def lay(tree: dict, folder: Path, pool: Path) -> None:
    """Write a state into a new folder; equal files are links to one in `pool`, which nothing changes in place."""
    folder.mkdir(parents=True)
    for name, data in tree.items():
        if data is None:
            (folder / name).mkdir()
            continue
        one = pool / f"{len(data)}-{hash(data)}"
        if not one.exists():
            one.write_bytes(data)
        os.link(one, folder / name)
