"""The labels that a batch shows are compared with those that were drawn for it."""

import warnings
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loader_runs import as_dict, as_object, fair
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_fair import FeedbackBatchSampler
from lightning_fair.dataloaders.fair_loader import make_fair
from lightning_fair.dataloaders.label_check import LabelCheck


def run(make_batch, K=4, size=16, batches=30, *, probs=None, check=None, **settings):
    """Check batches of random draws; return the check, its results, and its warnings."""
    rng = np.random.default_rng(0)
    check = check or LabelCheck(K, **settings)
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for draw_id in range(batches):
            labels = rng.choice(K, size, p=probs)
            batch = make_batch(torch.from_numpy(labels), rng)
            results.append((batch, labels, *check(batch, SimpleNamespace(draw_id=draw_id, labels=labels))))
    return check, results, [str(each.message) for each in caught]


def all_as_drawn(results):
    return all(as_drawn and torch.equal(found, torch.from_numpy(labels)) for _, labels, found, as_drawn in results)


def x(y):
    return torch.zeros(len(y), 3)


Sample = namedtuple("Sample", "image species")

STRUCTURES = {
    "second": lambda y, rng: (x(y), y),
    "third": lambda y, rng: (x(y), torch.from_numpy(rng.integers(0, 4, len(y))), y),
    "own key": lambda y, rng: {"image": x(y), "species": y},
    "nested": lambda y, rng: ([x(y), x(y)], {"info": {"species": y}}),
    "named tuple": lambda y, rng: Sample(x(y), y),
    "attribute": lambda y, rng: SimpleNamespace(x=x(y), y=y),
    "graph": lambda y, rng: type("Graph", (), {"to_dict": lambda self: {"x": x(y), "y": y}})(),
    "column of shape (n, 1)": lambda y, rng: (x(y), y[:, None]),
    "float": lambda y, rng: (x(y), y.float()),
    "bfloat16": lambda y, rng: (x(y), y.bfloat16()),
    "uint8": lambda y, rng: (x(y), y.to(torch.uint8)),
    "one-hot": lambda y, rng: (x(y), torch.nn.functional.one_hot(y, 4).float()),
    "list": lambda y, rng: (x(y), y.tolist()),
    "list of tensors": lambda y, rng: (x(y), list(y)),
    "array": lambda y, rng: (x(y), y.numpy()),
}


@pytest.mark.parametrize("make_batch", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("can_reorder", [False, True])
def test_labels_are_verified_in_every_structure(make_batch, can_reorder):
    check, results, messages = run(make_batch, can_reorder=can_reorder)
    assert check.relation == "labels"
    assert not messages
    assert all_as_drawn(results)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda y, rng: x(y),
        lambda y, rng: (x(y), torch.rand(len(y))),
        lambda y, rng: (x(y), torch.rand(len(y), 4).softmax(1)),
        lambda y, rng: (x(y), torch.ones(len(y), 8, 8, dtype=torch.int64)),
        lambda y, rng: [(row, int(label)) for row, label in zip(x(y), y, strict=True)],
        lambda y, rng: (x(y), y.to("meta")),
        lambda y, rng: (x(y), torch.arange(len(y) + 5)),
        lambda y, rng: (x(y), torch.from_numpy(rng.permutation(len(y)))),
        lambda y, rng: torch.arange(len(y)),
    ],
    ids=["images", "floats", "soft labels", "masks", "samples", "another device", "another length", "index", "ids"],
)
def test_batches_without_labels_are_said_once(hidden):
    check, results, messages = run(hidden)
    assert len(messages) == 1
    assert "could not verify that the batches hold the classes that were drawn" in messages[0]
    assert check.relation is None
    assert all_as_drawn(results)


def sorted_by_label(y, rng):
    return (x(y), torch.from_numpy(rng.permutation(len(y))), y.sort().values)


@pytest.mark.parametrize(
    "make_batch",
    [
        sorted_by_label,
        lambda y, rng: {"image": x(y), "species": y[torch.from_numpy(rng.permutation(len(y)))]},
        lambda y, rng: {"image": x(y[2:]), "species": y[2:].flip(0)},
        lambda y, rng: (lambda kept: (x(kept), kept))(y[rng.random(len(y)) < 0.9]),
    ],
    ids=["sorted", "shuffled", "fewer and reversed", "fewer"],
)
def test_reordered_column_is_followed(make_batch):
    """From the first batch on, if enough samples make a coincidence unlikely."""
    check, results, messages = run(make_batch, K=10, size=64, can_reorder=True)
    assert not messages
    for batch, labels, found, as_drawn in results:
        y = batch["species"] if isinstance(batch, dict) else batch[-1]
        assert torch.equal(found, y)
        assert as_drawn == np.array_equal(y, labels)
    assert check.relation == "labels"


def test_labels_that_were_certain_are_followed_after_a_change_of_order():
    """A column that equals the labels in order is the labels, also if a later batch has another order."""
    calls = []

    def late(y, rng):
        calls.append(0)
        return x(y), y if len(calls) < 20 else y.flip(0)

    _, results, messages = run(late, can_reorder=True)
    assert not messages
    assert all(torch.equal(found, batch[1]) for batch, _, found, _ in results)


def test_small_batches_need_several_agreements():
    """Of two classes and four samples, an unrelated column is a reordering of one batch in three."""
    _, results, messages = run(lambda y, rng: (x(y), y.sort().values), K=2, size=4, can_reorder=True)
    assert len(messages) == 1
    assert (
        "batch[1] may hold the labels in the new order, but fits by chance too often to be certain yet" in messages[0]
    )
    assert all(torch.equal(found, batch[1]) for batch, _, found, _ in results[8:])


def test_unrelated_column_is_not_followed():
    """Classes from `targets`, and batches of (x, rotation, index) with four samples each."""
    wrong = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)

        def rotations(y, _, rng=rng):
            return x(y), torch.from_numpy(rng.integers(0, 4, len(y))), torch.from_numpy(rng.permutation(1000)[: len(y)])

        check, results, messages = run(rotations, size=4, batches=24, can_reorder=True)
        assert len(messages) in (1, 2)  # perhaps first that a column may hold the labels
        assert "A batch does not hold the classes that were drawn for it" in messages[-1]
        assert check.relation is None
        wrong += sum(not as_drawn for _, _, _, as_drawn in results)
    assert wrong <= 1  # of 480


def test_default_collation_is_never_guessed():
    check, results, messages = run(sorted_by_label, can_reorder=False)
    assert all_as_drawn(results)
    assert len(messages) == 1
    assert "A batch does not hold the classes" in messages[0]
    assert "batch[2] holds {0: " in messages[0]
    assert check.relation is None


def test_two_reordered_columns_are_one_warning():
    def twice(y, rng):
        return x(y), y.sort().values, y.sort(descending=True).values

    _, results, messages = run(twice, can_reorder=True)
    assert len(messages) == 1
    assert "batch[1] and batch[2] could each hold the labels in the new order" in messages[0]
    assert all_as_drawn(results)


def test_shorter_batch_of_an_uncertain_column_warns():
    """If half of the samples of two classes are left out, almost any column would fit."""
    _, results, messages = run(lambda y, rng: (x(y[:4]), y[:4].flip(0)), K=2, size=16, can_reorder=True)
    assert len(messages) == 1
    assert all(torch.equal(found, batch[1]) for batch, _, found, _ in results)


def test_renumbered_classes_warn_once():
    swap = torch.tensor([1, 0, 2, 3])
    check, results, messages = run(lambda y, rng: (x(y), swap[y]), can_reorder=True)
    assert len(messages) == 1
    assert "batch[1] numbers the classes in another way" in messages[0]
    assert "(1 -> 0; 0 -> 1; 2 -> 2; 3 -> 3)" in messages[0]
    assert check.relation == "renumbered"
    assert all_as_drawn(results)


def test_balanced_renumbered_batches_are_not_reordered():
    """Swapped classes are a reordering of each batch that has as many of both."""
    check = LabelCheck(2, can_reorder=True)
    for labels in ([0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0]):
        drawn = np.array(labels)
        y, as_drawn = check((torch.zeros(4), torch.from_numpy(1 - drawn)), SimpleNamespace(draw_id=0, labels=drawn))
        assert as_drawn
        assert y.tolist() == labels


@pytest.mark.parametrize("names", [["cat", "dog", "eel", "fox"], ["b", "a", "d", "c"]])
def test_strings_are_verified(names):
    check, _, messages = run(lambda y, rng: (x(y), [names[label] for label in y]), were_numbered=True)
    assert check.relation == "renumbered"
    assert not messages


def test_merged_classes_warn():
    """The data set has ten classes, and the training sees `y == 3`."""
    _, results, messages = run(lambda y, rng: (x(y), y == 3), K=10, size=64)
    assert len(messages) == 1
    assert "batch[1] merges the classes that FairSampling balances" in messages[0]
    assert "0, 1, 2, 4, 5, 6, 7, 8, 9 -> 0; 3 -> 1" in messages[0]
    assert all_as_drawn(results)


def test_groups_may_merge():
    messages = []
    check, results, warned = run(lambda y, rng: (x(y), y // 2), are_groups=True, inform=messages.append)
    assert not warned
    assert check.relation == "groups"
    assert messages == [
        "FairSampling balances groups of the classes in batch[1] (group -> class): 0, 1 -> 0; 2, 3 -> 1."
    ]
    assert all_as_drawn(results)


def test_groups_that_no_column_follows():
    """Environments are balanced, and the batch has only classes, which do not depend on them."""
    _, results, messages = run(lambda y, rng: (x(y), torch.from_numpy(rng.integers(0, 2, len(y)))), are_groups=True)
    assert len(messages) == 1
    assert "If you balance groups on purpose that the batch does not show, this is fine" in messages[0]
    assert all_as_drawn(results)


@pytest.mark.parametrize("column", [lambda y, rng: torch.zeros_like(y), lambda y, rng: torch.arange(len(y)) // 2])
def test_column_without_information_is_a_contradiction(column):
    _, _, messages = run(lambda y, rng: (x(y), column(y, rng)))
    assert len(messages) == 1
    assert "does not hold the classes that were drawn for it" in messages[0]


def test_labels_that_change_later_are_noticed():
    """In the first batches of an epoch, and in one of 64 later ones."""
    for start, limit in ((40, 400), (None, 8)):
        check = LabelCheck(4)
        run(lambda y, rng: (x(y), y), check=check)
        if start is None:
            check.start_epoch()
        _, _, messages = run(lambda y, rng: (x(y), y.flip(0)), check=check, batches=limit)
        assert len(messages) == 1
        assert "the data set was changed, split or shuffled after its labels were read" in messages[0]


def test_comparisons_are_few():
    """After the first batches of an epoch, one batch in 64 is compared."""
    num_read = 0

    class Batch(tuple):
        def __iter__(self):
            nonlocal num_read
            num_read += 1
            return super().__iter__()

    run(lambda y, rng: Batch((x(y), y)), batches=2000)
    assert 10 < num_read < 60


def test_single_class_shows_nothing():
    _, results, messages = run(lambda y, rng: (x(y), y + 1), K=1)
    assert not messages
    assert all_as_drawn(results)


def test_state_continues_the_evidence():
    """A check that is restored after any batch decides as one that was not stopped."""

    def backwards(y, rng):
        return x(y), y.flip(0)

    def labels_of(stop):
        rng, check, seen = np.random.default_rng(1), LabelCheck(2, can_reorder=True), []
        for draw_id in range(40):
            if draw_id == stop:
                state = check.state_dict()
                check = LabelCheck(2, can_reorder=True)
                check.load_state_dict(state)
            y = rng.integers(0, 2, 6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                seen.append(
                    check(backwards(torch.from_numpy(y), rng), SimpleNamespace(draw_id=draw_id, labels=y))[0].tolist()
                )
        return seen

    whole = labels_of(None)
    assert all(labels_of(stop) == whole for stop in range(1, 20))


def backwards(samples):
    return default_collate(samples[::-1])


def fewer(samples):
    return default_collate(samples[:3])


def fewer_backwards_by_name(samples):
    return as_dict(samples[:-6:-1])


@pytest.mark.parametrize("collate", [default_collate, backwards, fewer, as_dict, fewer_backwards_by_name])
@pytest.mark.parametrize("key", ["label", "species", "y"])
def test_labels_of_changed_batches(collate, key):
    """If collate_fn drops or reorders samples, the labels are those of the batch."""

    def by_key(samples):
        batch = collate(samples)
        return (
            {(key if name == "label" else name): v for name, v in batch.items()} if isinstance(batch, dict) else batch
        )

    data = fair(collate_fn=by_key)
    for batch in data:
        y = batch[key] if isinstance(batch, dict) else batch[1]
        assert data.pending_batches[-1].labels.tolist() == y.tolist()


def only_images(samples):
    return default_collate(samples)[0]


def other_numbers_second(samples):
    x, y, _ = default_collate(samples)
    return x, torch.zeros_like(y), y


def numbers_out_of_range_second(samples):
    x, y, index = default_collate(samples)
    return x, index + 100, y


@pytest.mark.filterwarnings("ignore:FairSampling could not verify")
@pytest.mark.parametrize(
    "collate", [only_images, other_numbers_second, numbers_out_of_range_second, as_object, list, default_collate]
)
def test_labels_as_drawn(collate):
    """If a batch does not show other labels, they are the drawn ones."""
    data = fair(collate_fn=collate)
    for _ in data:
        assert data.pending_batches[-1].as_drawn
        assert data.pending_batches[-1].labels.dtype == torch.int64
        assert data.pending_batches[-1].labels.tolist() == data.pending_batches[-1].draw.labels.tolist()


def test_only_own_collation_can_reorder():
    y = torch.tensor([0, 1] * 8)

    class Batched(TensorDataset):
        def __getitems__(self, indices):
            return [self[i] for i in indices]

    def can_reorder(dataset, **settings):
        loader = DataLoader(dataset, batch_size=4, **settings)
        return make_fair(loader, FeedbackBatchSampler(y, 4)).label_check.can_reorder

    plain, batched = TensorDataset(y, y), Batched(y, y)
    assert not can_reorder(plain)
    assert not can_reorder(torch.utils.data.Subset(plain, range(16)))
    assert can_reorder(plain, collate_fn=backwards)
    assert can_reorder(batched)
    assert can_reorder(torch.utils.data.Subset(batched, range(16)))


def test_samples_dropped_before_the_column_is_certain():
    """The order stays, and some batches are shorter."""
    calls = []

    def dropping(y, rng):
        calls.append(0)
        first = int(len(calls) > 1)
        return x(y)[first:], y[first:], torch.arange(len(y))[first:]

    _, results, messages = run(dropping, K=4, size=8, can_reorder=True)
    assert not messages
    assert all(torch.equal(found, batch[1]) for batch, _, found, _ in results)


def test_short_column_is_no_column_of_labels():
    """A single number beside a batch of floats does not mean that all but one sample were left out."""
    _, results, messages = run(
        lambda y, rng: {"x": x(y), "y": y + 0.3, "step": torch.tensor([1])}, can_reorder=True, are_groups=True
    )
    assert len(messages) == 1
    assert "could not verify" in messages[0]
    assert all_as_drawn(results)


def test_batches_of_one_sample_are_verified():
    """The evidence is that of all batches together."""
    check, _, messages = run(lambda y, rng: (x(y), y), size=1, batches=60)
    assert check.relation == "labels"
    assert not messages
    _, _, messages = run(lambda y, rng: (x(y), torch.from_numpy(rng.integers(0, 4, 1))), size=1, batches=60)
    assert len(messages) == 1
    _, _, messages = run(lambda y, rng: (x(y), y // 2), size=1, batches=90)
    assert "merges" in messages[0]


@pytest.mark.parametrize(("K", "size"), [(100, 8), (1000, 8), (20, 4), (1000, 32)])
def test_sorted_batches_of_many_classes(K, size):
    """As long as no class comes twice, any column is a function of the labels; that is no evidence."""
    _, results, _ = run(lambda y, rng: (x(y), y.sort().values), K=K, size=size, batches=60, can_reorder=True)
    wrong = sum(not torch.equal(found, batch[1]) for batch, _, found, _ in results)
    assert wrong <= (1 if size == 4 else 0)


def test_same_column_in_each_batch_is_not_followed():
    """A `collate_fn` that adds the rotations 0, 1, 2, 3, 0, ... to balanced batches."""
    check, rng = LabelCheck(4, can_reorder=True), np.random.default_rng(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for draw_id in range(60):
            labels = rng.permutation(np.arange(16) % 4)
            check((torch.zeros(16), torch.arange(16) % 4), SimpleNamespace(draw_id=draw_id, labels=labels))
    assert check.relation is None
    assert len(caught) == 1


@pytest.mark.parametrize("coarse", [lambda y: y // 2, lambda y: (y > 0) * 1])
def test_labels_may_be_coarser_than_a_column(coarse):
    """Superclasses, or intervals of a number, are balanced, and the batch shows what they are made of."""
    rng, check = np.random.default_rng(0), LabelCheck(2, are_groups=True)
    for draw_id in range(20):
        fine = rng.integers(0, 4, 16)
        check((torch.zeros(16), torch.from_numpy(fine)), SimpleNamespace(draw_id=draw_id, labels=coarse(fine)))
    assert check.relation == "finer"


def test_followed_labels_are_a_copy():
    """A training step may change its labels in place."""
    _, results, _ = run(lambda y, rng: (x(y), y.flip(0)), K=10, size=64, can_reorder=True)
    batch, _, found, as_drawn = results[-1]
    assert not as_drawn
    before = found.clone()
    batch[1].zero_()
    assert torch.equal(found, before)


class Raising:
    def __init__(self):
        self.y = torch.zeros(16)

    def to_dict(self, orient):
        return None

    def __getattr__(self, name):
        raise KeyError(name)


@pytest.mark.parametrize(
    "part",
    [
        torch.zeros(16, 4).to_sparse(),
        torch.zeros(16, dtype=torch.complex64).conj(),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        torch.zeros(16).to(torch.float8_e4m3fn),
        [torch.zeros((), requires_grad=True)] * 16,
        Raising(),
        torch,
        dict,
        {"deep": [[[[[1]]]]]},
        torch.full((16,), torch.inf, dtype=torch.float16),
    ],
    ids=["sparse", "conjugate", "nested", "float8", "gradients", "object", "module", "class", "deep", "inf"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_parts_of_any_kind(part):
    """Parts of a batch that cannot be read are no columns."""
    check, _, messages = run(lambda y, rng: (x(y), y, part), can_reorder=True)
    assert check.column == "batch[1]"
    assert not messages
