"""Runs to report on: the drawn one with other sets or roles, and one of the embedded images."""

import numpy as np

import gradscore as gs
from gradscore.run import RunStore, SetInfo
from gradscore.run.changes import remove_set
from helpers.recorded_run import make_run

EMBEDDED = {
    "digits": ("id", "digits:test"),
    "unseen": ("ood", "digits:unseen"),
    "noise": ("ood", "digits:noise"),
}


def drawn_run(path, *, keep=None, roles=None, sources=None, **how):
    """Make the drawn run, of it only some sets, with other roles or sources."""
    make_run(path, **how)
    with RunStore.open_for_writing(path) as store:
        for name in list(store.sets):
            if keep is not None and name not in keep:
                remove_set(store, name)
        for name, role in (roles or {}).items():
            store.sets[name].role = role
        for name, source in (sources or {}).items():
            store.sets[name].source = str(source)
        store.save()
    return path


def with_many(path, *, rows, name="many", role="ood"):
    """Add a set of many drawn images to the drawn run."""
    rng = np.random.default_rng(rows)
    features = rng.normal(size=(rows, 4)).astype(np.float32)
    base = {
        "index": np.arange(rows),
        "path": np.array([f"{name}/{k}.png" for k in range(rows)], dtype=object),
        "label": np.full(rows, -1),
        "features": features,
        "logits": np.pad(features, ((0, 0), (0, 1))),
    }
    with RunStore.open_for_writing(path) as store:
        store.add_set(SetInfo(name, role, "drawn", "a" * 64, rows))
        store.add_shards(name, {"base": base}, (0, rows))
    return path


def embedded_run(path, *, limit=40, **how):
    """Extract a few of the embedded images."""
    return gs.extract("digits", EMBEDDED, path, layers="last", limit=limit, **how).path
