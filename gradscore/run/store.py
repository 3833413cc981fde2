"""A run on disk: opened for reading by anyone, for writing by one process at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from gradscore.errors import NotRecorded, RunError
from gradscore.norms import number_name
from gradscore.run import layout, names
from gradscore.run.advice import extract_command, new_run_command, norms_options, pass_options
from gradscore.run.damage import told
from gradscore.run.files import WriterLock, read_arrays, write_arrays, write_whole
from gradscore.run.layout import FailedRow, PassInfo, RunInfo, SetInfo, Shard
from gradscore.run.names import BASE
from gradscore.run.reading import BASE_FIELDS, Block, ahead, read_blocks
from gradscore.run.shard import build_shard


class RunStore:
    """One model's recorded sets.

    ``RunStore(path)`` reads; :meth:`create` and :meth:`open_for_writing` hold the writer's lock
    until :meth:`close` (or the end of a ``with`` block).

    Attributes:
        path: The run's directory.
        info: What ``run.json`` says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: WriterLock | None = None
        self.info = _read_info(self.path)

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
        lock = WriterLock(path)
        try:
            if (path / names.RUN_FILE).exists():
                raise RunError(f"There is a run in {path} already.")
            if head:
                info.head.sha256 = write_arrays(path / names.HEAD_FILE, head)
            write_whole(path / names.RUN_FILE, layout.encode(info))
            store = cls(path)
        except BaseException:
            lock.release()
            raise
        store._lock = lock
        return store

    @classmethod
    def open_for_writing(cls, path: str | Path) -> "RunStore":
        """Open a run to add to it, and hold its lock.

        Raises:
            RunError: If there is no run, it is damaged, or another process writes it.
        """
        path = Path(path)
        _read_info(path)
        lock = WriterLock(path)
        try:
            store = cls(path)
        except BaseException:
            lock.release()
            raise
        store._lock = lock
        return store

    def close(self) -> None:
        """Release the lock, if held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunStore":
        """Return the store itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock."""
        self.close()

    @property
    def sets(self) -> dict[str, SetInfo]:
        """The recorded sets by name, in the order in which they were added."""
        return self.info.sets

    @property
    def norm_passes(self) -> dict[tuple[str, float, float], PassInfo]:
        """The norm passes by ``(target, temperature, p)``; of several, that of most parameters."""
        widest: dict[tuple[str, float, float], PassInfo] = {}
        for entry in self.info.passes.values():
            key = (entry.target, entry.temperature, entry.p)
            best = widest.get(key)
            if entry.kind == "norms" and (
                best is None or len(entry.parameters) > len(best.parameters)
            ):
                widest[key] = entry
        return widest

    def find_norms(
        self,
        target: str,
        temperature: float,
        p: float,
        parameters: Sequence[str],
        layers: str = "all",
    ) -> PassInfo:
        """Return the smallest pass that recorded a question for all of ``parameters``.

        Args:
            target: Target distribution of the loss.
            temperature: Softmax temperature.
            p: Order of the norm.
            parameters: Names of the parameters.
            layers: What the user calls them.

        Raises:
            NotRecorded: If there is none; the message holds the command that records it.
        """
        fitting = [
            entry
            for entry in self.info.passes.values()
            if (entry.kind, entry.target, entry.temperature, entry.p)
            == ("norms", target, temperature, p)
            and set(parameters) <= set(entry.parameters)
        ]
        if not fitting:
            command = extract_command(self.path, *norms_options(layers, target, temperature, p))
            raise NotRecorded(
                f"The run holds no gradient norms of {layers} for target {target}, "
                f"T = {number_name(temperature)}, p = {number_name(p)}; record them with "
                f"{command}."
            )
        return min(fitting, key=lambda entry: len(entry.parameters))

    def head(self) -> dict[str, NDArray]:
        """Return the last layer's ``weight`` and ``bias`` (if it has one), float32.

        Raises:
            NotRecorded: If the model's last layer has no closed form.
            RunError: If the file is missing or damaged.
        """
        if self.info.head.sha256 is None:
            raise NotRecorded(
                f"The run {self.path} holds no last layer: {self.info.head.reason or 'none'}."
            )
        with told(self.path, self.info):
            return read_arrays(self.path / names.HEAD_FILE, self.info.head.sha256)

    def require_complete(self, set_name: str, passes: Sequence[str] = (BASE,)) -> SetInfo:
        """Return a set's entry, or raise unless it and those passes are there to the last image.

        Raises:
            NotRecorded: If the set or a pass is absent or unfinished; the message says what to do.
        """
        if set_name not in self.sets:
            known = ", ".join(self.sets) or "none"
            raise NotRecorded(
                f"Expected a set of the run {self.path} ({known}), got {set_name!r}."
            )
        entry = self.sets[set_name]
        for name in passes:
            if not entry.complete(name):
                command = extract_command(self.path, *pass_options(self.info, name))
                raise NotRecorded(
                    f"Pass {name} of set {set_name} is unfinished: {entry.done(name)} of "
                    f"{entry.rows} images; finish it with {command}."
                )
        return entry

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ("features", "logits", "label", "path", "index"),
        norms: Sequence[str] = (),
        rows: int = 4096,
    ) -> Iterator[Block]:
        """Yield a set in index order, at most ``rows`` rows at a time, one block read ahead.

        Memory is bounded by two blocks, whatever the set's size.

        Args:
            set_name: Name of a finished set.
            fields: Of ``index`` [rows] int64, ``path`` [rows] str, ``label`` [rows] int64 (-1
                unknown), ``features`` [rows, in_features] and ``logits`` [rows, classes] float32.
            norms: Names of passes to join: norms [rows, K] float32 (never negated), or the
                activations [rows, ...] of a ``keep-`` pass.
            rows: Largest number of rows in a block; a block never spans two shards.

        Returns:
            An iterator of dicts: field or pass name to array.

        Raises:
            NotRecorded: If the set or a pass is absent or unfinished, or a field is not recorded.
            RunError: If a file is missing or damaged.
        """
        unknown = sorted(set(fields) - set(BASE_FIELDS))
        if unknown:
            raise RunError(f"Expected fields of {', '.join(BASE_FIELDS)}, got {unknown[0]!r}.")
        if "features" in fields and not self.info.features:
            raise NotRecorded(
                f"The run {self.path} holds no features: {self.info.head.reason or 'none'}."
            )
        entry = self.require_complete(set_name, (BASE, *norms))
        return ahead(lambda: self._read(entry, tuple(fields), tuple(norms), rows))

    def _read(self, *what: Any) -> Iterator[Block]:
        with told(self.path, self.info):
            yield from read_blocks(self.path, *what)

    def add_set(self, entry: SetInfo) -> None:
        """Add a set without rows; part of the next written ``run.json``."""
        self.info.sets[names.check_set_name(entry.name)] = entry

    def add_pass(self, entry: PassInfo) -> None:
        """Add a recorded question; part of the next written ``run.json``."""
        self.info.passes[names.check_name(entry.name, "pass name")] = entry

    def add_shards(
        self,
        set_name: str,
        arrays: Mapping[str, Mapping[str, NDArray]],
        span: tuple[int, int],
        failed: Sequence[FailedRow] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Write the next shard of one or more passes, then ``run.json``.

        Killed in between, the files are there but not named, and are written again.

        Args:
            set_name: A set that was added.
            arrays: Pass name to its arrays, each ``[rows, ...]``, with ``index`` among them.
            span: First image covered, and the one after the last.
            failed: Images of the span that have no row.
            settings: Device, batch size, worker count and layout, recorded beside the shard.

        Raises:
            RunError: If a file cannot be written, or the run was not opened for writing.
        """
        self._require_lock()
        entry = self.info.sets[set_name]
        for name, content in arrays.items():
            shards = entry.passes.setdefault(name, [])
            file = names.shard_file(set_name, name, len(shards))
            built = build_shard(content)
            write_whole(self.path / file, built)
            digest = hashlib.sha256(built).hexdigest()
            rows = len(content["index"])
            shards.append(Shard(file, digest, *span, rows, dict(settings or {})))
        entry.failed.extend(failed)
        self.save()

    def save(self) -> None:
        """Write ``run.json``."""
        self._require_lock()
        write_whole(self.path / names.RUN_FILE, layout.encode(self.info))

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RunError(f"The run {self.path} was opened for reading only.")


def _read_info(path: Path) -> RunInfo:
    file = path / names.RUN_FILE
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        command = new_run_command(path)
        raise RunError(f"No run in {path}; make one with {command}.") from None
    except OSError as error:
        raise RunError(f"Cannot read {file}: {error.strerror}.") from error
    with told(path, None):
        return layout.decode(content, file)
