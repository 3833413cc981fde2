"""A run on disk: read by anyone, written by one process at a time."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from gradscore.errors import RunError
from gradscore.run.building import build_shard
from gradscore.run.contents import Arrays, fit_file, read_fit_file, shard_file
from gradscore.run.hints import repair_hint, require_newest
from gradscore.run.index import checksum_of, encode
from gradscore.run.journal import Journal
from gradscore.run.layout import (
    FailedRow,
    FitInfo,
    PassInfo,
    RunInfo,
    SetInfo,
    Shard,
)
from gradscore.run.names import (
    HEAD_FILE,
    JOURNAL_FILE,
    RUN_FILE,
    check_name,
    check_set_name,
)
from gradscore.run.reader import RunReader, read_info
from gradscore.run.writer import Writer


@contextmanager
def _lock(path: Path) -> Iterator[Writer]:
    """Lock a run for writing; the lock is held afterwards, but not where an error comes between.

    Raises:
        RunError: If it is no directory, cannot be written, or another process writes it.
    """
    writer = Writer(path)
    try:
        yield writer
    except BaseException:
        writer.release()
        raise


class RunStore(RunReader):
    """One model's recorded sets.

    ``RunStore(path)`` reads; :meth:`create` and :meth:`open_for_writing` hold the writer's lock
    until :meth:`close` (or the end of a ``with`` block).

    Attributes:
        whole: Of a part that is written: what the whole run holds already; None for nothing.
    """

    def __init__(self, path: str | Path, model: Any = None) -> None:
        super().__init__(path, model)
        self._writer: Writer | None = None
        self.whole: RunReader | None = None
        self._journal: Journal | None = None
        self._rules = 0

    @classmethod
    def create(
        cls, path: str | Path, info: RunInfo, head: Mapping[str, NDArray] | None = None
    ) -> "RunStore":
        """Make a new run and hold its lock.

        Args:
            path: A directory that is absent, empty, or holds nothing that a run would overwrite.
            info: What the run is about, without sets.
            head: The last layer's ``weight`` and ``bias``, float32, if it has a closed form.

        Raises:
            RunError: If there is a run already, another process writes it, or the directory
                cannot be written.
        """
        path = Path(path)
        with _lock(path) as writer:
            if os.path.lexists(path / RUN_FILE):
                raise RunError(f"There is a run in {path} already.")
            if head:
                info.head.sha256 = writer.write_arrays(HEAD_FILE, head)
            writer.write(RUN_FILE, encode(info))
            return cls._written_by(writer)

    @classmethod
    def open_for_writing(cls, path: str | Path) -> "RunStore":
        """Open a run to add to it, and hold its lock.

        Raises:
            RunError: If there is no run, it is damaged, of an older format, or another process
                writes it.
        """
        path = Path(path)
        require_newest(read_info(path), path)
        with _lock(path) as writer:
            return cls._written_by(writer)

    @classmethod
    def _written_by(cls, writer: Writer) -> "RunStore":
        store = cls(writer.directory)
        store._writer = writer
        if os.path.lexists(writer.directory / JOURNAL_FILE):
            store.save()
        return store

    @property
    def writer(self) -> Writer:
        """What writes its files.

        Raises:
            RunError: If the run was opened for reading only.
        """
        if self._writer is None:
            raise RunError(f"The run {self.path} was opened for reading only.")
        return self._writer

    def close(self) -> None:
        """Release the lock, if held, with all that was added in ``run.json``."""
        if self._writer is not None:
            if self._journal is not None and self._journal.begun:
                with suppress(RunError):  # the journal says it as well
                    self.save()
            self._writer.release()
            self._writer = None

    def __enter__(self) -> "RunStore":
        """Return the store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock.

        Raises:
            RunError: If the run is no longer where it was written.
        """
        try:
            if error is None and self._writer is not None:
                self._writer.require_in_place()
        finally:
            self.close()

    def holder_of(self, set_name: str, name: str) -> RunReader:
        """Return what holds the rows of a pass: the run of which this is a part, or this one."""
        entry = self.whole.sets.get(set_name) if self.whole is not None else None
        return self.whole if entry is not None and entry.complete(name) else self

    def add_set(self, entry: SetInfo) -> None:
        """Add a set without rows; part of the next written ``run.json``."""
        self._journal = None
        self.info.sets[check_set_name(entry.name, entry.role)] = entry

    def add_pass(self, entry: PassInfo) -> None:
        """Add a pass without rows; part of the next written ``run.json``."""
        self._journal = None
        self.info.passes[check_name(entry.name, "pass name")] = entry

    def add_shards(
        self,
        set_name: str,
        arrays: Mapping[str, Mapping[str, NDArray]],
        span: tuple[int, int],
        failed: Sequence[FailedRow] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Write the next shard of one or more passes, then a line of the journal.

        Killed in between, the files are there but not named, and are written again. What a step
        costs does not grow with the run.

        Args:
            set_name: A set that was added.
            arrays: Pass name to its arrays, each ``[rows, ...]``, with ``index`` among them.
            span: First image covered, and the one after the last.
            failed: Images of the span that have no row.
            settings: Device, batch size, worker count and layout, recorded beside the shard.

        Raises:
            RunError: If a file cannot be written, or the run was not opened for writing.
        """
        writer = self.writer
        entry, added = self.info.sets[set_name], {}
        for name, content in arrays.items():
            file = shard_file(set_name, name, len(entry.passes.setdefault(name, [])))
            built = build_shard(content)
            writer.write(file, built)
            digest = hashlib.sha256(built).hexdigest()
            rows = len(content["index"])
            added[name] = Shard(file, digest, *span, rows, dict(settings or {}))
        self._note(entry, added, failed)

    def adopt_shards(
        self,
        set_name: str,
        files: Mapping[str, tuple[str, str, int]],
        span: tuple[int, int],
        failed: Sequence[FailedRow] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Give shards that lie elsewhere in the run their places, and write a line of the journal.

        Args:
            set_name: A set that was added.
            files: Pass name to its file below the run, its SHA-256 and its number of rows.
            span: As of :meth:`add_shards`.
            failed: As of :meth:`add_shards`.
            settings: As of :meth:`add_shards`.

        Raises:
            RunError: If a file cannot be moved, or the run was not opened for writing.
        """
        entry, added = self.info.sets[set_name], {}
        for name, (source, digest, rows) in files.items():
            file = shard_file(set_name, name, len(entry.passes.setdefault(name, [])))
            self.writer.link(source, file)
            added[name] = Shard(file, digest, *span, rows, dict(settings or {}))
        self._note(entry, added, failed)
        for source, _, _ in files.values():
            self.writer.delete(source, folders_too=False)

    def _note(
        self, entry: SetInfo, added: Mapping[str, Shard], failed: Sequence[FailedRow]
    ) -> None:
        """Take new shards into the index: a line of the journal, or the whole where it is due."""
        for name, shard in added.items():
            entry.passes[name].append(shard)
        entry.failed.extend(failed)
        if self._journal is None or self._rules != self._known_rules():
            self.save()
        else:
            new = not self._journal.begun
            self.writer.append(
                JOURNAL_FILE, self._journal.line(entry.name, added, failed), new=new
            )

    def _known_rules(self) -> int:
        """Return how many parameters' rules are known: each pass's, once a batch was computed."""
        return sum(len(entry.rules) for entry in self.info.passes.values())

    def read_fit(self, name: str) -> Arrays | None:
        """Return the arrays of a fit, or None where the run holds no such fit or its file is gone.

        Raises:
            RunError: If its file is damaged.
        """
        known = self.info.fits.get(name)
        if known is None or not self.is_there(fit_file(name)):
            return None
        with repair_hint(self.path, self.info):
            return read_fit_file(self.path, self.info, known)

    def write_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Write a fit's file, then ``run.json``; equal arrays give equal bytes.

        Args:
            entry: What :func:`~gradscore.run.describe_fit` returned; its checksum is filled in.
            arrays: What was learned, by name.

        Raises:
            RunError: If a file cannot be written, or the run was not opened for writing.
        """
        entry.sha256 = self.writer.write_arrays(fit_file(entry.name), arrays)
        self.info.fits[entry.name] = entry
        self.save()

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Write a fit into a run that is open for reading, or raise RunError."""
        with RunStore.open_for_writing(self.path) as writer:
            writer.write_fit(entry, arrays)
        self.info.fits[entry.name] = entry

    def save(self) -> None:
        """Write ``run.json``, in place of the journal."""
        content = encode(self.info)
        self.writer.write(RUN_FILE, content)
        self.writer.delete(JOURNAL_FILE)
        self._journal, self._rules = Journal(checksum_of(content)), self._known_rules()

    def is_there(self, file: str) -> bool:
        """Return whether a file of the run has not been deleted."""
        return os.path.lexists(self.path / file)
