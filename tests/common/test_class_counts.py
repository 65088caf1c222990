import numpy as np

from lightning_fair.common.class_counts import ClassCounts


def test_labels_are_grouped_by_class():
    counts = ClassCounts(np.array([3, 0, 2]), np.array([1, 2, 0]))
    assert counts.labels.tolist() == [3, 0, 0]
    assert counts.to_dense(5).tolist() == [2, 0, 0, 1, 0]


def test_empty_batch_has_no_labels():
    counts = ClassCounts(np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert counts.labels.tolist() == []
    assert counts.to_dense(2).tolist() == [0, 0]
