"""The label sets that a batch shows are compared with those that were drawn for it."""

import io
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_fair.dataloaders.label_set_check import LabelSetCheck, SetEvidence


def draw_rows(rng, size, K, has_unlabeled):
    """Return random label sets; without `has_unlabeled` each sample has a label."""
    rows = rng.random((size, K)) < 0.4
    if has_unlabeled:
        rows[:, -1] = ~rows[:, :-1].any(axis=1)
    else:
        rows[np.arange(size), rng.integers(0, K, size)] = True
    return rows


def run(make_batch, K=5, size=16, batches=30, *, has_unlabeled=True, check=None, **settings):
    """Check batches of random draws; return the check, its results, and its warnings."""
    rng = np.random.default_rng(0)
    check = check or LabelSetCheck(K, has_unlabeled=has_unlabeled, **settings)
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for draw_id in range(batches):
            rows = draw_rows(rng, size, K, check.has_unlabeled)
            batch = make_batch(torch.from_numpy(rows.copy()), rng)
            results.append((batch, rows, *check(batch, SimpleNamespace(draw_id=draw_id, labels=rows))))
    return check, results, [str(each.message) for each in caught]


def all_as_drawn(results):
    return all(as_drawn and torch.equal(labels, torch.from_numpy(rows)) for _, rows, labels, as_drawn in results)


def x(y):
    return torch.rand(len(y), 3)


def numbers(y):
    """The class numbers of each sample; class 4 of five is that of samples without a label."""
    return [row[:4].nonzero()[:, 0] for row in y]


@dataclass
class Batch:
    image: torch.Tensor
    tags: torch.Tensor


STRUCTURES = {
    "with the class none": lambda y, rng: (x(y), y),
    "without it": lambda y, rng: (x(y), y[:, :4]),
    "all columns, but no samples in the last": lambda y, rng: (x(y), y * torch.tensor([1, 1, 1, 1, 0])),
    "float": lambda y, rng: (x(y), y[:, :4].float()),
    "bfloat16": lambda y, rng: (x(y), y[:, :4].bfloat16()),
    "uint8": lambda y, rng: (x(y), y[:, :4].to(torch.uint8)),
    "array": lambda y, rng: (x(y), y[:, :4].numpy()),
    "sparse": lambda y, rng: (x(y), y[:, :4].to_sparse()),
    "nested": lambda y, rng: {"input": [x(y), x(y)], "info": {"tags": y}},
    "dataclass": lambda y, rng: Batch(x(y), y),
    "beside a class": lambda y, rng: (x(y), torch.from_numpy(rng.integers(0, 4, len(y))), y),
    "beside binary features": lambda y, rng: (torch.from_numpy(rng.random((len(y), 5)) < 0.5), y),
    "list of rows": lambda y, rng: (x(y), list(y[:, :4].float())),
    "list of numbers": lambda y, rng: (x(y), numbers(y)),
    "list of lists": lambda y, rng: (x(y), [row.tolist() for row in numbers(y)]),
    "list of sets": lambda y, rng: (x(y), [set(row.tolist()) for row in numbers(y)]),
}


@pytest.mark.parametrize("make_batch", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("can_reorder", [False, True])
def test_label_sets_are_verified_in_every_structure(make_batch, can_reorder):
    check, results, messages = run(make_batch, can_reorder=can_reorder)
    assert check.relation == "labels"
    assert not messages
    assert all_as_drawn(results)


def test_label_sets_without_empty_ones_are_verified():
    check, results, messages = run(lambda y, rng: (x(y), y.long()), has_unlabeled=False)
    assert (check.column, check.relation) == ("batch[1]", "labels")
    assert not messages
    assert all_as_drawn(results)


def mixed(y, rng):
    """MixUp."""
    return x(y), 0.7 * y.float() + 0.3 * y.float().flip(0)


HIDDEN = {
    "images": lambda y, rng: x(y),
    "mixed": mixed,
    "smoothed": lambda y, rng: (x(y), y * 0.9 + 0.05),
    "another width": lambda y, rng: (x(y), y[:, :3]),
    "class numbers": lambda y, rng: (x(y), torch.from_numpy(rng.integers(0, 4, len(y)))),
    "another device": lambda y, rng: (x(y), y.to("meta")),
    "masks": lambda y, rng: (x(y), torch.ones(len(y), 5, 5)),
    "list of features": lambda y, rng: (x(y), [torch.rand(4) for _ in y]),
    "list of strings": lambda y, rng: (x(y), [["a", "b"]] * len(y)),
    "list of large numbers": lambda y, rng: (x(y), [[1_000_000, 5]] * len(y)),
}


@pytest.mark.parametrize("make_batch", HIDDEN.values(), ids=HIDDEN)
def test_batches_without_label_sets_are_said_once(make_batch):
    check, results, messages = run(make_batch)
    assert len(messages) == 1
    assert "could not verify that the batches hold the classes that were drawn" in messages[0]
    assert "they show no matrix of zeros and ones on the CPU" in messages[0]
    assert check.relation is None
    assert all_as_drawn(results)


def test_remedy_for_mixed_samples():
    """The label sets as a further element beside mixed targets."""
    check, _, messages = run(lambda y, rng: (*mixed(y, rng), y))
    assert not messages
    assert check.column == "batch[2]"


WRONG = {
    "other samples": lambda y, rng: (x(y), y[torch.from_numpy(rng.permutation(len(y)))]),
    "a label more": lambda y, rng: (x(y), y.int() | (torch.arange(len(y))[:, None] == 3)),
    "merged classes": lambda y, rng: (x(y), torch.stack((y[:, 0] | y[:, 1], *y[:, 1:].T), 1)),
    "class moved to another": lambda y, rng: (x(y), torch.stack((y[:, 0] & False, *y[:, 1:4].T, y[:, 0] | y[:, 4]), 1)),
    "other lists": lambda y, rng: (x(y), numbers(y)[::-1]),
}


@pytest.mark.parametrize("has_unlabeled", [False, True])
@pytest.mark.parametrize("make_batch", WRONG.values(), ids=WRONG)
def test_contradiction_is_one_warning(make_batch, has_unlabeled):
    names = [f"tag {c}" for c in range(5)]
    check, results, messages = run(make_batch, has_unlabeled=has_unlabeled, names=names)
    assert len(messages) == 1
    counts = results[0][1].sum(0)
    drawn = ", ".join(f"tag {c}: {n}" for c, n in enumerate(counts) if n)
    assert f"A batch does not hold the classes that were drawn for it, {{{drawn}}} (class: samples): " in messages[0]
    assert "batch[1] holds {" in messages[0]
    assert "labels='scan' reads the label of each sample" in messages[0]
    assert check.relation is None
    assert all_as_drawn(results)


def test_contradiction_of_verified_labels():
    """A later epoch has other labels than the first."""
    check = LabelSetCheck(5, has_unlabeled=True)
    assert run(lambda y, rng: (x(y), y), check=check)[2] == []
    check.start_epoch()
    _, results, messages = run(WRONG["other samples"], check=check)
    assert len(messages) == 1
    assert "A batch does not hold the classes" in messages[0]
    assert all_as_drawn(results)


ORDER = [2, 0, 3, 1]
SHIFTED = torch.tensor([1, 5, 90, 7])


RENUMBERED = {
    "columns": (lambda y, rng: (x(y), y[:, ORDER]), "0 -> 1; 1 -> 3; 2 -> 0; 3 -> 2"),
    "columns with none": (lambda y, rng: (x(y), y[:, [4, *ORDER]]), "0 -> 2; 1 -> 4; 2 -> 1; 3 -> 3; 4 -> 0"),
    "numbers from 1": (lambda y, rng: (x(y), [row + 1 for row in numbers(y)]), "0 -> 1; 1 -> 2; 2 -> 3; 3 -> 4"),
    "numbers with gaps": (
        lambda y, rng: (x(y), [SHIFTED[row] for row in numbers(y)]),
        "0 -> 1; 1 -> 5; 2 -> 90; 3 -> 7",
    ),
}


@pytest.mark.parametrize(("make_batch", "shown"), RENUMBERED.values(), ids=RENUMBERED)
def test_renumbered_classes_warn_once(make_batch, shown):
    check, results, messages = run(make_batch, can_reorder=True)
    assert len(messages) == 1
    assert f"batch[1] numbers the classes in another way than the labels that FairSampling has ({shown})" in messages[0]
    assert check.relation == "renumbered"
    assert all_as_drawn(results)
    assert run(make_batch, were_numbered=True)[2] == []


def test_renumbered_classes_that_are_no_longer():
    check = LabelSetCheck(5, has_unlabeled=True, were_numbered=True)
    assert run(lambda y, rng: (x(y), y[:, ORDER]), check=check)[2] == []
    assert check.relation == "renumbered"
    check.start_epoch()
    assert len(run(lambda y, rng: (x(y), y[:, ORDER[::-1]]), check=check)[2]) == 1


def test_classes_of_the_same_samples_are_renumbered_together():
    """Which of two columns is which class cannot be seen, and does not matter."""
    messages, rng = [], np.random.default_rng(0)
    check = LabelSetCheck(3, has_unlabeled=False, warn=messages.append)
    for draw_id in range(9):
        rows = draw_rows(rng, 16, 2, False)[:, [0, 0, 1]]
        check((x(rows), torch.from_numpy(rows[:, [2, 0, 1]])), SimpleNamespace(draw_id=draw_id, labels=rows))
    assert len(messages) == 1
    assert "(0, 1 -> 1, 2; 2 -> 0)" in messages[0]


def shuffled(y, rng):
    y = y[torch.from_numpy(rng.permutation(len(y)))]
    return x(y), y


def dropping(y, rng):
    kept = y[torch.from_numpy(rng.random(len(y)) < 0.9)].flip(0)
    return x(kept), kept


@pytest.mark.parametrize("make_batch", [shuffled, dropping], ids=["shuffled", "fewer and reversed"])
@pytest.mark.parametrize("has_unlabeled", [False, True])
def test_reordered_rows_are_followed(make_batch, has_unlabeled):
    """From the first batch on, because many different rows make a coincidence unlikely."""
    check, results, messages = run(make_batch, size=64, has_unlabeled=has_unlabeled, can_reorder=True)
    assert not messages
    assert check.relation == "labels"
    for (_, y), rows, labels, as_drawn in results:
        assert labels.dtype is torch.bool
        assert torch.equal(labels, y)
        assert as_drawn == np.array_equal(y, rows)


def test_reordered_rows_without_the_class_none_are_followed():
    def make_batch(y, rng):
        return x(y), y[:, :4].flip(0).float()

    _, results, messages = run(make_batch, size=64, can_reorder=True)
    assert not messages
    assert all(torch.equal(labels, torch.from_numpy(rows).flip(0)) for _, rows, labels, _ in results)


def test_followed_labels_are_a_copy():
    _, results, _ = run(lambda y, rng: (x(y), y.flip(0)), size=64, can_reorder=True)
    batch, _, labels, as_drawn = results[-1]
    assert not as_drawn
    before = labels.clone()
    batch[1].zero_()
    assert torch.equal(labels, before)


def test_two_reordered_matrices_are_one_warning():
    _, results, messages = run(lambda y, rng: (x(y), y.flip(0), y.roll(1, 0)), can_reorder=True)
    assert len(messages) == 1
    assert "batch[1] and batch[2] could each hold the labels in the new order" in messages[0]
    assert all_as_drawn(results)


def test_reordered_rows_that_become_others():
    """The rows of other samples are no reordering of those that were drawn."""
    calls = []

    def late(y, rng):
        calls.append(0)
        return x(y), (y if len(calls) < 10 else torch.ones_like(y)).flip(0)

    _, results, messages = run(late, can_reorder=True, has_unlabeled=False)
    assert len(messages) == 1
    assert "batch[1] holds {0: 16, 1: 16, 2: 16, 3: 16, 4: 16}" in messages[0]
    assert all_as_drawn(results[9:])


def test_single_class_needs_no_column():
    _, results, messages = run(lambda y, rng: x(y), K=1, has_unlabeled=False)
    assert not messages
    assert all_as_drawn(results)


def test_matrices_are_read_rarely_once_they_are_certain(monkeypatch):
    check, _, _ = run(lambda y, rng: (x(y), y))
    monkeypatch.setattr(LabelSetCheck, "_to_column", lambda self, leaf: read.append(0))
    for start, expected in ((False, 0), (True, 4)):
        read: list[int] = []
        if start:
            check.start_epoch()
        for draw_id in (101, 102, 103, 104, 105, 107):  # none of these is one of 64
            check(
                (torch.ones(2, 3), torch.ones(2, 5)), SimpleNamespace(draw_id=draw_id, labels=np.ones((2, 5), np.bool_))
            )
        assert len(read) == expected


@pytest.mark.parametrize("batches", [1, 2, 30], ids=["unknown", "undecided", "certain"])
def test_state_is_loaded(batches):
    def make_batch(y, rng):
        return x(y), y[:, ORDER]

    check, _, _ = run(make_batch, K=5, size=4, batches=batches, were_numbered=True)
    file = io.BytesIO()
    torch.save(check.state_dict(), file)
    file.seek(0)
    other = LabelSetCheck(5, has_unlabeled=True, were_numbered=True)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.column, other.relation) == (check.column, check.relation)
    assert (check.relation is None) == (batches < 30)
    run(make_batch, size=4, check=other)
    assert other.relation == "renumbered"
    assert set(SetEvidence(5, True).spec()) == set(SetEvidence(5, True).state_dict())


def test_state_of_other_classes_is_refused():
    check, _, _ = run(lambda y, rng: (x(y), y), size=2, batches=1)
    with pytest.raises(ValueError, match=r"evidence\.batch\[1\]\._\w+ must be a tensor"):
        LabelSetCheck(6, has_unlabeled=True).load_state_dict(check.state_dict())
