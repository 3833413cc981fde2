"""A run of chosen rows of another run, each set of them for a purpose.

Methods read it as they read a run on disk. A score that is chosen, or that a detector deploys, is
so planned, learned and computed by the same code as the score of a recorded run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.columns import NoRoom
from gradscore.methods.base import RecordedRun
from gradscore.methods.kept_rows import KeptRows
from gradscore.methods.memory_run import Arrays, set_entry
from gradscore.run import BASE, FitInfo, PassInfo, SetInfo
from gradscore.run.blocks import BASE_FIELDS, most_rows
from gradscore.run.layout import BLOCKS

ROWS = 4096
LARGEST_KEPT = 1 << 30
"""Bytes of a set's rows that are kept on the disk, at most."""
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """Some images of one set of a run.

    Attributes:
        set: The set's name.
        mask: Whether each image of its list is among them, shape ``[images]``; None for all.
    """

    set: str
    mask: Mask | None = None


class PartOfRun:
    """A run whose sets are chosen rows of another's, each for a purpose.

    What a method learns is kept here, and never in the other run.

    Args:
        run: The other run.
        sets: Name of a set to its role and the rows that it is made of.
        learned: What the one method that is asked learned, where that is known.
        keep: Whether rows that are chosen here and there are kept on the disk when they are first
            read, unless they take more than :data:`LARGEST_KEPT`: for who reads them often.

    Attributes:
        path: That of the other run.
        model: That of the other run.
        info: What the run is about.
        learned: What a method learned: given, or learned last; None where none did.
    """

    def __init__(
        self,
        run: RecordedRun,
        sets: Mapping[str, tuple[str | None, Sequence[Chosen]]],
        learned: Mapping[str, NDArray] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        self._keep, self._kept = keep, dict[str, KeptRows | None]()
        self._run, self._chosen = run, {name: chosen for name, (_, chosen) in sets.items()}
        self.path, self.model = run.path, run.model
        self._given = learned is not None
        self.learned: Arrays | None = dict(learned) if self._given else None
        self._fits: dict[str, Arrays] = {}
        entries = {name: self._entry(name, role, chosen) for name, (role, chosen) in sets.items()}
        self.info = replace(run.info, sets=entries, fits={})

    def _entry(self, name: str, role: str | None, chosen: Sequence[Chosen]) -> SetInfo:
        rows, digest = 0, sha256()
        for one in chosen:
            entry = self._run.sets[one.set]
            digest.update(entry.manifest_sha256.encode())
            rows += entry.recorded()
            if one.mask is not None:
                digest.update(np.packbits(one.mask).tobytes())
                failed = [row.index for row in entry.failed]
                rows += int(one.mask.sum() - one.mask[failed].sum()) - entry.recorded()
        whole = [self._run.sets[one.set] for one in chosen]
        passes = (p for p in self._run.info.passes if all(entry.complete(p) for entry in whole))
        made = set_entry(name, role, rows, tuple(passes))
        return replace(made, manifest_sha256=digest.hexdigest())

    @property
    def sets(self) -> Mapping[str, SetInfo]:
        """The sets by name."""
        return self.info.sets

    def find_norms(self, *asked: Any) -> PassInfo:
        """Return the other run's pass that holds some norms, or raise NotRecorded."""
        return self._run.find_norms(*asked)

    def head(self) -> Arrays:
        """Return the last layer's ``weight`` and, if it has one, ``bias``, float32."""
        return self._run.head()

    def read_fit(self, name: str) -> Arrays | None:
        """Return what the method learned from these rows, or None."""
        return self.learned if self._given else self._fits.get(name)

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Keep what the method learned from these rows."""
        self.learned = self._fits[entry.name] = dict(arrays)

    def require_complete(self, set_name: str, passes: Sequence[str] = (BASE,)) -> SetInfo:
        """Return a set's entry, or raise NotRecorded unless those passes are finished."""
        for chosen in self._chosen[set_name]:
            self._run.require_complete(chosen.set, passes)
        return self.sets[set_name]

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ("index",),
        norms: Sequence[str] = (),
        rows: int = ROWS,
    ) -> Iterator[Arrays]:
        """Yield the chosen rows in the order of their lists, at most ``rows`` at once."""
        read = tuple(dict.fromkeys(("index", *fields)))
        rows = most_rows(self.info, read, rows)
        kept = self._kept_rows(set_name) if self._keep else None
        passes = {*self._small_passes(set_name)}
        if kept is None or not ({*read} <= {*kept.names} and {*norms} <= passes):
            return self._whole_blocks(set_name, read, norms, rows)
        # A pass of several arrays names each after itself.
        of_passes = [name for name in kept.names if name.partition("/")[0] in norms]
        return kept.blocks((*read, *of_passes), rows)

    def _kept_rows(self, set_name: str) -> KeptRows | None:
        """Return the rows of a set as they were first read; None where they are not kept."""
        if set_name not in self._kept:
            self._kept[set_name] = self._keep_rows(set_name)
        return self._kept[set_name]

    def _keep_rows(self, set_name: str) -> KeptRows | None:
        rows = self.sets[set_name].recorded()
        if not rows or any(one.mask is None for one in self._chosen[set_name]):
            return None
        fields = [name for name in BASE_FIELDS if name != "features" or self.info.features]
        most = most_rows(self.info, fields, ROWS)
        passes = self._small_passes(set_name)
        with closing(self._whole_blocks(set_name, fields, passes, most)) as blocks:
            first = next(blocks)
            bytes_of_row = sum(values.nbytes for values in first.values()) / len(first["index"])
            if rows * bytes_of_row > LARGEST_KEPT:
                return None
            with suppress(NoRoom):  # then they are read as often as they are asked for
                return KeptRows(chain([first], blocks), rows)
        return None

    def _small_passes(self, set_name: str) -> list[str]:
        """Return the passes of a set that hold a few numbers an image."""
        return [
            name
            for name, entry in self.info.passes.items()
            if entry.kind in ("norms", BLOCKS) and self.sets[set_name].complete(name)
        ]

    def _whole_blocks(
        self, set_name: str, fields: Sequence[str], norms: Sequence[str], rows: int
    ) -> Iterator[Arrays]:
        """Yield the chosen rows of many blocks as one.

        What is computed of a block takes as long for twenty rows as for a thousand.
        """
        held: list[Arrays] = []
        count = 0
        for arrays in self._chosen_blocks(set_name, fields, norms, rows):
            held.append(arrays)
            count += len(arrays["index"])
            if count >= rows:
                whole = _joined(held)
                yield {name: values[:rows] for name, values in whole.items()}
                count -= rows
                held = [{name: values[rows:] for name, values in whole.items()}] if count else []
        if held:
            yield _joined(held)

    def _chosen_blocks(
        self, set_name: str, fields: Sequence[str], norms: Sequence[str], rows: int
    ) -> Iterator[Arrays]:
        """Yield the chosen rows of each block of the other run."""
        for chosen in self._chosen[set_name]:
            for arrays in self._run.blocks(chosen.set, fields, norms, rows):
                if chosen.mask is None:
                    yield arrays
                    continue
                kept = chosen.mask[arrays["index"]]
                if kept.any():
                    yield {name: values[kept] for name, values in arrays.items()}

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = ("index",), norms: Sequence[str] = ()
    ) -> Iterator[Arrays]:
        """Yield the chosen rows of a set that a method learns from."""
        return self.blocks(set_name, fields, norms)


def _joined(blocks: Sequence[Arrays]) -> Arrays:
    """Return blocks as one."""
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([arrays[name] for arrays in blocks]) for name in blocks[0]}
