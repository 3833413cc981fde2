"""What methods learn from sets of a run, stored beside them so that it is learned once.

A fit is a file of named arrays (safetensors), named after its method, its sets and a digest of
everything else that it depends on: another set or setting is another fit, and both may lie side
by side.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from gradscore.run.arrays import Arrays, read_fit_file
from gradscore.run.damage import told
from gradscore.run.layout import FitInfo, RunInfo
from gradscore.run.names import fit_file
from gradscore.run.store import RunStore


def describe_fit(
    info: RunInfo, method: str, sets: Sequence[str], settings: Mapping[str, Any]
) -> FitInfo:
    """Return the entry of a fit, whether or not it was made.

    Args:
        info: What the run is about.
        method: Who learns.
        sets: Names of the run's sets that it learns from, in the order of their parts in it.
        settings: Everything else that the result depends on; plain numbers, texts and lists.
    """
    content = {name: info.sets[name].manifest_sha256 for name in sets}
    about = json.dumps([method, list(content.items()), dict(settings)], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    name = "-".join((method, *sets, digest))
    return FitInfo(name, method, content, dict(settings))


def read_fit(store: RunStore, name: str) -> Arrays | None:
    """Return the arrays of a fit, or None where the run holds no such fit or its file is gone.

    Raises:
        RunError: If its file is damaged.
    """
    known = store.info.fits.get(name)
    if known is None or not os.path.lexists(store.path / fit_file(name)):
        return None
    with told(store.path, store.info):
        return read_fit_file(store.path, store.info, known)


def write_fit(store: RunStore, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
    """Write a fit's file, then ``run.json``; equal arrays give equal bytes.

    Args:
        store: The run, open for writing.
        entry: What :func:`describe_fit` returned; its checksum is filled in.
        arrays: What was learned, by name.

    Raises:
        RunError: If a file cannot be written, or the run was not opened for writing.
    """
    entry.sha256 = store.writer.write_arrays(fit_file(entry.name), arrays)
    store.info.fits[entry.name] = entry
    store.save()
