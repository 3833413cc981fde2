"""A small run with drawn features, a linear head and one inner layer; shared by the tests."""

import numpy as np
import torch

from gradscore.run import HeadInfo, PassInfo, RunInfo, RunStore, SetInfo, norms_name

PARAMETERS = {"stem.weight": 6, "body.weight": 12, "body.bias": 3, "head.weight": 20}
GROUPS = {
    "stem": ("stem.weight",),
    "block1": ("body.weight", "body.bias"),
    "last": ("head.weight",),
    "all": tuple(PARAMETERS),
}
ROLES = {"digits": "id", "noise": "ood", "train": None, "photos": "ood"}
SIZES = {"digits": 40, "noise": 25, "train": 60, "photos": 30}


def drawn_set(name, features=4, classes=5, rows=None):
    """Return index, path, label, features and logits of a set, the same for every call."""
    rng = np.random.default_rng(sorted(ROLES).index(name))
    rows = SIZES[name] if rows is None else rows
    x = rng.normal(size=(rows, features)).astype(np.float32) + (name == "digits")
    weight = np.random.default_rng(9).normal(size=(classes, features)).astype(np.float32)
    logits = x @ weight.T
    label = logits.argmax(1) if ROLES[name] != "ood" else np.full(rows, -1)
    label[:2] = -1
    if ROLES[name] == "id":
        label[5] = (label[5] + 1) % classes
    return {
        "index": np.arange(rows),
        "path": np.array([f"{name}/{k}.png" for k in range(rows)], dtype=object),
        "label": label.astype(np.int64),
        "features": x,
        "logits": logits.astype(np.float32),
    }


def drawn_norms(name):
    """Return norms ``[rows, parameters]`` of a set, the same for every call."""
    rng = np.random.default_rng([7, sorted(ROLES).index(name)])
    return rng.exponential(size=(SIZES[name], len(PARAMETERS))).astype(np.float32)


def make_run(path, *, closed_form=True, passes=(("uniform", 1.0, 1.0),), change=None):
    """Write a run of four sets in shards of 16 rows; ``change(name, arrays)`` may alter them."""
    head = HeadInfo(
        "head" if closed_form else None,
        ("head.weight",),
        None,
        closed_form,
        "" if closed_form else "the logits are not its output: something follows it",
    )
    info = RunInfo(
        model="python:tests:drawn",
        weights=None,
        weights_sha256="a" * 64,
        preprocessing={},
        precision="float32",
        classes=5,
        features=4,
        input_shape=(1, 8, 8),
        head=head,
        parameters=PARAMETERS,
        groups=GROUPS,
    )
    weight = {"weight": np.zeros((5, 4), np.float32)} if closed_form else None
    with RunStore.create(path, info, weight) as store:
        for target, temperature, p in passes:
            name = norms_name(target, temperature, p)
            store.add_pass(
                PassInfo(name, "norms", target, temperature, p, parameters=tuple(PARAMETERS))
            )
        for name, role in ROLES.items():
            base = drawn_set(name)
            norms = drawn_norms(name)
            if change is not None:
                change(name, base)
            store.add_set(SetInfo(name, role, "drawn", "a" * 64, SIZES[name]))
            for start in range(0, SIZES[name], 16):
                part = slice(start, min(start + 16, SIZES[name]))
                arrays = {"base": {field: array[part] for field, array in base.items()}}
                for key in passes:
                    arrays[norms_name(*key)] = {
                        "index": base["index"][part],
                        "norms": norms[part] * np.float32(key[2]),
                    }
                store.add_shards(name, arrays, (part.start, part.stop))
    return path


def tensors(name):
    """Return a set's features and logits as float64 tensors."""
    drawn = drawn_set(name)
    return (torch.as_tensor(drawn[field]).double() for field in ("features", "logits"))


def base_rows(index, features=3):
    index = np.asarray(index)
    column = index.astype(np.float32)[:, None]
    return {
        "index": index,
        "path": np.array([f"dir/é{i}.png" for i in index], dtype=object),
        "label": index % 2,
        "features": column + np.arange(features, dtype=np.float32),
        "logits": column * np.array([1, -1], np.float32),
    }
