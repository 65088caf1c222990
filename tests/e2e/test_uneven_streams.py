"""Streams whose ranks do not have equally many batches: every epoch ends on all ranks together."""

import os
from functools import partial

import pytest
from uneven_runs import BATCH, Iterable, Shard, SizedShard, agree_in_own_group, one_sized, train_unevenly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does."),
]


@pytest.mark.parametrize(
    ("source", "size", "settings", "batches", "line"),
    [
        (Shard, (13, 10), {}, 10, "rank 1 ended after 10"),
        (Shard, (10, 13), {}, 10, "rank 0 ended after 10"),
        (Shard, (13, 10), {"loaded": {"num_workers": 2}}, 10, "rank 1 ended after 10"),
        (Shard, (10, 13), {"loaded": {"num_workers": 2, "persistent_workers": True}}, 10, "rank 0 ended after 10"),
        (Shard, (5, 3), {"loaded": {"drop_last": True}, "validated": True}, 3, "rank 1 ended after 3"),
        (Shard, (13, 10), {"limit_train_batches": 5}, 5, None),
        (Shard, (10, 10), {}, 10, None),
        (SizedShard, (13, 10), {}, 10, "rank 1 has 10"),  # Lightning asks for the length, and stops there
        (one_sized, (13, 10), {}, 10, "rank 1 ended after 10"),
        (SizedShard, (13, 10), {"second": True}, 10, "rank 1 has 10"),
        (Iterable, 10 * BATCH + 1, {}, 5, "rank 1 ended after 5"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_epochs_end_together(source, size, settings, batches, line, two):
    """Every epoch ends with the rank that ends first, what others have left is not counted, and one line says so."""
    runs = two(train_unevenly, source=source, sizes=size, **settings)
    number = 0 if line is None else 2 if "ended" in line else 1
    for rank, run in enumerate(runs):
        assert run.failure is None
        assert run.epochs == [batches] * 2
        assert (run.draws, run.handed_out) == (2 * batches, 2 * batches * BATCH)
        assert [f"the stream of {line} batches, so" in each for each in run.lines] == [True] * number * (rank == 0)


@pytest.mark.parametrize("source", [Shard, SizedShard])
def test_rank_without_samples(source, two):
    """An empty shard is an error on every rank, not an epoch without steps."""
    for run in two(train_unevenly, source=source, sizes=(3, 0)):
        assert "The stream has no batch on rank 1, and some on other ranks" in str(run.failure)
        assert sum(run.epochs) == 0


def test_source_that_fails_on_one_rank(two):
    """The error of one rank's source is an error on all of them."""
    first, second = two(train_unevenly, source=partial(Shard, fails=1), sizes=(5, 5))
    assert second.failure == "OSError: the disk is gone"
    assert first.failure == "RuntimeError: The stream of rank 1 failed: OSError: the disk is gone"


def test_group_without_gpu(two):
    """If the process group works on GPUs alone, the ranks agree in one of their own, which is made once."""
    assert two(agree_in_own_group) == [(True, [[], [None, "x"]])] * 2
