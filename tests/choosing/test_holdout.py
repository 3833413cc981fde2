"""Folds of classes that the head is robbed of."""

import pytest
import torch

from gradscore.choosing.holdout import holdouts
from gradscore.methods.rows import LastLayer, Rows


@pytest.mark.parametrize(("classes", "folds"), [(4, 2), (6, 3), (10, 5), (11, 5), (1000, 5)])
def test_each_class_is_dropped_once(classes, folds):
    found = holdouts(classes)
    assert len(found) == folds
    dropped = torch.cat([fold.dropped for fold in found])
    assert sorted(dropped.tolist()) == list(range(classes))
    for fold in found:
        assert sorted([*fold.dropped.tolist(), *fold.kept.tolist()]) == list(range(classes))
        assert len(fold.kept) >= 2


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_have_no_fold(classes):
    assert holdouts(classes) == []


def test_rows_and_head_lack_the_dropped_classes():
    head = LastLayer(torch.randn(6, 4), torch.randn(6))
    features = torch.randn(50, 4)
    rows = Rows(features, head(features).float())
    for fold in holdouts(6):
        torch.testing.assert_close(
            fold.head(head)(features).float(), fold.rows(rows).logits, rtol=1e-5, atol=1e-5
        )
        expected = [int(c) in fold.dropped.tolist() for c in rows.logits.argmax(1)]
        assert fold.held_out(rows).tolist() == expected
