"""A run as anyone reads it: what it holds, and rows block by block."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gradscore.errors import NotRecorded, RunError
from gradscore.norms import number_name
from gradscore.objective import Objective
from gradscore.run.blocks import BASE_FIELDS, Block, Rows, most_rows, read_blocks
from gradscore.run.choice_file import ChoiceRecord, read_choice_file
from gradscore.run.contents import Arrays, read_head
from gradscore.run.files import Vanished, read_below
from gradscore.run.hints import (
    extract_command,
    merge_command,
    new_run_command,
    norms_options,
    pass_options,
    repair_hint,
)
from gradscore.run.index import decode
from gradscore.run.layout import BASE, PassInfo, RunInfo, SetInfo
from gradscore.run.names import JOURNAL_FILE, PARTS, RUN_FILE
from gradscore.run.shard import ShardReader

LARGEST_INDEX = 1 << 27
"""Most bytes of a ``run.json``, and of its journal: more than two hundred thousand shards."""


class RunReader:
    """One model's recorded sets.

    Args:
        path: The run's directory.
        model: The run's model, or its spec, as its user names it: what could run code or fetch
            files is not built on the word of the run alone.

    Attributes:
        path: The run's directory.
        model: As given.
        info: What ``run.json`` says.

    Raises:
        RunError: If there is no run in ``path``, or it is damaged.
    """

    def __init__(self, path: str | Path, model: Any = None) -> None:
        self.path, self.model = Path(path), model
        self.info = read_info(self.path)

    @property
    def sets(self) -> dict[str, SetInfo]:
        """The recorded sets by name, in the order in which they were added."""
        return self.info.sets

    def find_norms(
        self, objective: Objective, parameters: Sequence[str], layers: str = "all"
    ) -> PassInfo:
        """Return the smallest pass that recorded an objective for all of ``parameters``.

        Args:
            objective: The loss, and the order of the norm.
            parameters: Names of the parameters.
            layers: What the user calls them.

        Raises:
            NotRecorded: If there is none; the message holds the command that records it.
        """
        asked = target, temperature, p = objective.target, objective.temperature, objective.p
        fitting = [
            entry
            for entry in self.info.passes.values()
            if (entry.kind, entry.target, entry.temperature, entry.p) == ("norms", *asked)
            and set(parameters) <= set(entry.parameters)
        ]
        if not fitting:
            command = extract_command(self, *norms_options(layers, *asked))
            raise NotRecorded(
                f"The run holds no gradient norms of {layers} for target {target}, "
                f"T = {number_name(temperature)}, p = {number_name(p)}; record them with "
                f"{command}."
            )
        return min(fitting, key=lambda entry: len(entry.parameters))

    def head(self) -> Arrays:
        """Return the last layer's ``weight`` and ``bias`` (if it has one), float32.

        Raises:
            NotRecorded: If the model's last layer has no closed form.
            RunError: If the file is missing or damaged.
        """
        if self.info.head.sha256 is None:
            raise NotRecorded(
                f"The run {self.path} holds no last layer: {self.info.head.reason or 'none'}."
            )
        with repair_hint(self.path, self.info):
            return read_head(self.path, self.info)

    def read_choice(self) -> ChoiceRecord | None:
        """Return which score was last chosen for the run's model, or None.

        Raises:
            RunError: If the file is damaged.
        """
        with repair_hint(self.path, self.info):
            return read_choice_file(self.path)

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
                command = extract_command(self, *pass_options(self.info, name))
                raise NotRecorded(
                    f"{set_name}: {_what(name)} of {entry.done(name):,} of {entry.rows:,} images "
                    f"are recorded; go on with {command}."
                )
        return entry

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ("features", "logits", "label", "path", "index"),
        norms: Sequence[str] = (),
        rows: int = 4096,
    ) -> Iterator[Block]:
        """Yield a set in index order, at most ``rows`` rows at a time.

        Memory is bounded by one block and a few small files, whatever the set's size: the next
        files are read and hashed while a block is used.

        Args:
            set_name: Name of a finished set.
            fields: Of ``index`` [rows] int64, ``path`` [rows] str, ``label`` [rows] int64 (-1
                unknown), ``features`` [rows, in_features] and ``logits`` [rows, classes] float32.
            norms: Names of passes to join: norms [rows, K] float32 (never negated), or the
                activations [rows, ...] of a ``keep-`` pass.
            rows: Largest number of rows in a block, which has fewer where they are wide
                (:func:`~gradscore.run.blocks.most_rows`) and never spans two shards.

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
        most = most_rows(self.info, fields, rows)
        return self._read(entry, tuple(fields), tuple(norms), most)

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = BASE_FIELDS, norms: Sequence[str] = ()
    ) -> Iterator[Block]:
        """Yield the rows of a set that methods learn from: all of them, as :meth:`blocks`."""
        return self.blocks(set_name, fields, norms)

    def rows(
        self, set_name: str, name: str, fields: Sequence[str], start: int = 0
    ) -> Callable[[NDArray], NDArray]:
        """Return what reads rows of one dataset in index order, also of an unfinished pass.

        Args:
            set_name: Name of a set.
            name: The pass.
            fields: The one dataset.
            start: First image.

        Returns:
            From the places of the next images to their values; raises RunError where the run does
            not hold them, or is damaged.
        """
        reader = ShardReader(self.path, self.info, self.sets[set_name], name)
        cursor = Rows(reader, fields, start)

        def take(index: NDArray) -> NDArray:
            with repair_hint(self.path, self.info):
                (values,) = cursor.take(index).values()
            return values

        return take

    def _read(self, *what: Any) -> Iterator[Block]:
        with repair_hint(self.path, self.info):
            yield from read_blocks(self.path, self.info, *what)


def read_info(path: Path) -> RunInfo:
    """Return what ``run.json`` of a directory says.

    Raises:
        RunError: If there is none, or it is damaged.
    """
    file = path / RUN_FILE
    if not os.path.lexists(file):
        if (path / PARTS).is_dir():
            raise RunError(
                f"The run {path} is recorded in parts; join them with {merge_command(path)}."
            )
        raise RunError(f"No run in {path}; make one with {new_run_command(path)}.")
    with repair_hint(path, None):
        content, journal = read_below(path, RUN_FILE, LARGEST_INDEX), b""
        if os.path.lexists(path / JOURNAL_FILE):
            with suppress(Vanished):  # a writer has just written the whole
                journal = read_below(path, JOURNAL_FILE, LARGEST_INDEX)
        return decode(content, file, journal)


def _what(name: str) -> str:
    """Return what a pass holds, in a word for messages."""
    return "features and logits" if name == BASE else name
