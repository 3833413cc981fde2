"""Runs that someone made to do harm: what they say altered, and checksums made to fit."""

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np

from gradscore.run import (
    FailedRow,
    HeadInfo,
    PassInfo,
    RunInfo,
    RunStore,
    SetInfo,
    check,
)

ROWS, PASS = 20, "norms-uniform-T1-p1"
BASE = "digits/base/shard-00000.h5"
NORMS = f"digits/{PASS}/shard-00000.h5"


def sound_run(path):
    """Make a run of one set in two shards, image 3 of which could not be read."""
    head = HeadInfo("fc", ("fc.weight",), "fc.bias", True)
    parameters = {"conv.weight": 9, "fc.weight": 6}
    info = RunInfo(
        "digits", None, "a" * 64, {}, "float32", 2, 3, (1, 8, 8), head,
        parameters, {"last": ("fc.weight",), "all": tuple(parameters)},
    )  # fmt: skip
    arrays = {"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)}
    with RunStore.create(path, info, arrays) as store:
        store.add_set(SetInfo("digits", "id", "digits:test", "c" * 64, ROWS))
        store.add_pass(PassInfo(PASS, "norms", "uniform", 1.0, 1.0, "rules", tuple(parameters)))
        for start in (0, 10):
            index = np.array([i for i in range(start, start + 10) if i != 3])
            column = index.astype(np.float32)[:, None]
            base = {
                "index": index,
                "path": np.array([f"{i}.png" for i in index], dtype=object),
                "label": index % 2,
                "features": column + np.arange(3, dtype=np.float32),
                "logits": column * np.array([1, -1], np.float32),
            }
            norms = {"index": index, "norms": np.repeat(column, 2, axis=1)}
            failed = [] if start else [FailedRow(3, "3.png", "truncated")]
            store.add_shards("digits", {"base": base, PASS: norms}, (start, start + 10), failed)
    return path


def sign(text):
    """Return a run's text with its checksum, as anyone can make it."""
    blank = text.encode() if isinstance(text, str) else text
    before, _, after = blank.rpartition(b"0" * 64)
    return before + hashlib.sha256(blank).hexdigest().encode() + after


def says(run):
    """Return what ``run.json`` says, without its checksum."""
    content = json.loads(Path(run, "run.json").read_bytes())
    del content["checksum"]
    return content


def say(run, content):
    """Write ``run.json`` anew, with a checksum that fits."""
    text = json.dumps({**content, "checksum": "0" * 64}, indent=1) + "\n"
    Path(run, "run.json").write_bytes(sign(text))


def alter(run, change):
    """Change what ``run.json`` says."""
    content = says(run)
    change(content)
    say(run, content)


def accept(run, file):
    """Make the recorded digest of a file that of what it holds now."""
    digest = hashlib.sha256(Path(run, file).read_bytes()).hexdigest()

    def change(content):
        if file == "head.safetensors":
            content["head"]["sha256"] = digest
        for name, fit in content["fits"].items():
            if file == f"fits/{name}.safetensors":
                fit["sha256"] = digest
        for entry in content["sets"].values():
            for shards in entry["passes"].values():
                for shard in shards:
                    if shard["file"] == file:
                        shard["sha256"] = digest

    alter(run, change)


def rebuild(run, file, change):
    """Change a shard by h5py, and its digest with it."""
    with h5py.File(Path(run, file), "r+") as shard:
        change(shard)
    accept(run, file)


def read(run):
    """Read all of a run as scoring does."""
    store = RunStore(run)
    if store.info.head.sha256:
        store.head()
    return [
        block
        for name, entry in store.sets.items()
        for block in store.blocks(name, norms=[p for p in entry.passes if p != "base"], rows=7)
    ]


def refusals(run):
    """Return what ``run check`` says of a run, and what reading says first."""
    problems = check(run)
    try:
        read(run)
    except Exception as error:
        return problems, error
    return problems, None
