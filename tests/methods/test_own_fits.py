"""What users' methods learned, as arrays and back, and the digest of their functions."""

import functools
import os

import numpy as np
import pytest
import torch

from gradscore.methods.fingerprint import fingerprint
from gradscore.methods.own_fits import pack, unpack

LEARNED = {
    "tensor": torch.arange(6.0).reshape(2, 3),
    "rank 0": torch.tensor(3, dtype=torch.int64),
    "array": np.array([[1, 2]], np.uint8),
    "number": 0.1,
    "whole": 7,
    "truth": True,
    "tuple": (torch.ones(2), 3.0),
    "list": [np.zeros(3, np.float32), np.float32(2)],
    "dict": {"b.c": torch.ones(1, dtype=torch.bool), "a": 1},
}
NOT_KEPT = {
    "none": None,
    "empty": {},
    "text": "abc",
    "nested": [[1.0]],
    "other keys": {1: 2.0},
    "no entry": torch.empty(0),
    "not finite": torch.tensor([1.0, float("nan")]),
    "complex": torch.ones(1, dtype=torch.complex64),
    "bfloat16": torch.ones(1, dtype=torch.bfloat16),
    "too large": 2**53 + 1,
    "object": object(),
}


def same(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
        assert bytes(np.asarray(one)) == bytes(np.asarray(other))
    else:
        assert type(one) is type(other)
        assert one == other


@pytest.mark.parametrize("name", LEARNED)
def test_what_was_learned_comes_back_as_it_was(name):
    fits = [LEARNED[name]] * 2
    packed = pack(fits)
    assert all(array.dtype == np.float64 and array.ndim for array in packed.values())
    # A file has its own order.
    for one in unpack(dict(sorted(packed.items(), reverse=True)), 2):
        if isinstance(one, dict):
            assert list(one) == list(LEARNED[name])
            one, expected = list(one.values()), list(LEARNED[name].values())
        else:
            expected = LEARNED[name]
        pairs = (
            zip(one, expected, strict=True) if isinstance(one, list | tuple) else [(one, expected)]
        )
        for found, wanted in pairs:
            same(found, wanted)


@pytest.mark.parametrize("name", NOT_KEPT)
def test_what_is_no_array_or_would_change_is_not_kept(name):
    assert pack([NOT_KEPT[name]]) is None


@pytest.mark.parametrize(
    "name",
    [
        "fold0",
        "fold7.one.tensor.float64.1.0.",
        "fold0.set.tensor.float64.1.0.",
        "fold0.one.tensor.object.1.0.",
        "fold0.one.tensor.float64.x.0.",
        "weights",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"."):
        unpack({name: np.ones(1)}, 1)


def test_a_fold_without_anything_is_refused():
    with pytest.raises(ValueError, match="holds nothing"):
        unpack({"fold0.one.number.float64.0.0.": np.ones(1)}, 2)


CONSTANT, TABLE = 3, [1, 2]


def helper(x):
    return x * CONSTANT


def uses_helper(x):
    return helper(x) + torch.ones(1)


def uses_table(x):
    return x + TABLE[0]


def test_the_digest_follows_constants_tables_and_helpers(monkeypatch):
    before = [fingerprint(uses_helper), fingerprint(uses_table)]
    assert None not in before
    assert before == [fingerprint(uses_helper), fingerprint(uses_table)]
    monkeypatch.setitem(globals(), "CONSTANT", 4)
    monkeypatch.setitem(globals(), "TABLE", [1, 3])
    after = [fingerprint(uses_helper), fingerprint(uses_table)]
    assert None not in after
    assert not set(before) & set(after)


def closing_over(value):
    return lambda x: x + value


def test_the_digest_follows_enclosed_variables_defaults_and_code():
    found = [
        fingerprint(closing_over(1)),
        fingerprint(closing_over(2)),
        fingerprint(closing_over(torch.zeros(2))),
        fingerprint(closing_over(torch.ones(2))),
        fingerprint(lambda x, k=1: x),
        fingerprint(lambda x, k=2: x),
        fingerprint(lambda x: x + 1),
        fingerprint(lambda x: x + 2),
        fingerprint(functools.partial(helper, 1)),
        fingerprint(functools.partial(helper, 2)),
        fingerprint(functools.partial(torch.nn.functional.relu, inplace=True)),
    ]
    assert None not in found
    assert len(set(found)) == len(found)
    assert fingerprint(closing_over(1)) == found[0]


def with_helper(value):
    def inner(x, k=value):
        return x * k

    return lambda x, k=0: inner(x) + k


def wrapping(value):
    @functools.wraps(functools.reduce)
    def inner(x):
        return x * value

    return inner


@pytest.mark.parametrize("make", [with_helper, wrapping])
def test_the_digest_follows_a_helpers_defaults_and_what_wraps_a_librarys_function(make):
    found = [fingerprint(make(value)) for value in range(5)]
    assert None not in found
    assert len(set(found)) == 5


class Counter:
    """Can be called, and has a state of its own."""

    def __call__(self, x):
        return x


COUNTER = Counter()


def recursive(n):
    return n if n < 1 else recursive(n - 1)


def test_what_refers_to_objects_or_files_has_no_digest():
    assert fingerprint(Counter()) is None
    assert fingerprint(lambda x: COUNTER(x) + 1) is None
    assert fingerprint(closing_over(object())) is None
    assert fingerprint(lambda path: open(path).name) is None  # noqa: SIM115
    assert fingerprint(lambda x: np.load(x)) is None
    assert fingerprint(lambda x: os.environ[x]) is None
    assert fingerprint(closing_over(np.array([object()]))) is None
    assert fingerprint(recursive) is not None
