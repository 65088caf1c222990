"""Batches in step with other ranks, which are simulated here; tests/e2e/test_uneven_streams.py has real ones."""

import pytest

from lightning_fair.dataloaders import rank_steps
from lightning_fair.dataloaders.rank_steps import RankSteps


@pytest.fixture
def steps(monkeypatch):
    """Return a function that makes the steps of rank 0, of which other ranks have ``lengths`` batches."""

    def make(*lengths, length=None):
        taken = iter(range(100))

        def obstacles(own):
            number = next(taken)
            of_all = [own, *(rank_steps._END if number >= batches else None for batches in lengths)]
            return of_all if any(of_all) else []

        monkeypatch.setattr(rank_steps, "gather_obstacles", obstacles)
        monkeypatch.setattr(rank_steps, "gather_from_ranks", lambda value: [value, *lengths])
        lines = []
        return RankSteps(length, lines.append), lines

    return make


def test_alone():
    """One rank keeps its length and all of its batches."""
    steps = RankSteps(3, pytest.fail)
    assert steps.length == 3
    assert list(steps.in_step(iter("abc"))) == list("abc")
    with pytest.raises(ZeroDivisionError):
        list(steps.in_step(1 / 0 for _ in range(1)))


def test_ranks_that_ended_are_listed(steps):
    both, lines = steps(2, 9, *[2] * 9)
    batches = both.in_step(iter("abcd"))
    assert list(batches) == ["a", "b"]
    assert list(batches) == []  # without asking the other ranks once more
    (line,) = lines
    assert "the stream of ranks 1, 3, 4, 5, 6, 7, 8, 9, ... ended after 2 batches" in line


def test_epoch_that_goes_on_may_have_nothing_left(steps):
    """A run that is resumed where one rank's stream ends has ended the epoch, and is no error."""
    begun, lines = steps(0)
    assert list(begun.in_step(iter("ab"), goes_on=True)) == []
    assert "rank 1 ended after 0 more batches" in lines[0]
    begun, lines = steps(0)
    with pytest.raises(ValueError, match=r"no batch on rank 1, and some on other ranks.*Give every rank samples"):
        next(begun.in_step(iter("ab")))
    assert lines == []


def test_length_is_the_smallest(steps):
    both, lines = steps(4, 7, length=5)
    assert both.length == 4
    assert lines == ["FairSampling: the stream of rank 1 has 4 batches, so every epoch has at most these."]
    assert steps(4, 7)[0].length is None
    assert steps(4, 4, length=4)[1] == []
    with pytest.raises(ValueError, match="no batch on ranks 0, 2"):
        steps(4, 0, length=0)
