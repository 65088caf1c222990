"""What the sampler of a loader is for: it balances, selects, or puts several samples of a class into a batch."""

import numpy as np
import pytest
import torch
from lightning_helpers import Indexed
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_fair.dataloaders.checks import batch_size, check_loader
from lightning_fair.dataloaders.samplers import batch_sampler, ignored_sampler, reads_in_bulk, samples_per_class

LABELS = Indexed().targets
SIZE = len(LABELS)


class Drawn(Sampler):
    """Draws ``length`` indices by a function of the number of the epoch."""

    def __init__(self, length=40):
        self.length, self.epoch = length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        self.epoch += 1
        rng = np.random.default_rng(self.epoch)
        return iter(self.draw(rng).tolist())

    def draw(self, rng):
        return rng.permutation(SIZE)[: self.length]


class Undersampling:
    """As many samples of each class as the rarest has, others in each epoch."""

    def draw(self, rng):
        classes = [np.flatnonzero(c == LABELS) for c in range(4)]
        size = min(map(len, classes))
        return rng.permutation(np.concatenate([rng.permutation(indices)[:size] for indices in classes]))


class RandomUnderSampler(Undersampling, Drawn):
    pass


class BalanceClassSampler(Undersampling, Drawn):
    pass


class Evened(Undersampling, Drawn):
    """Its name does not tell what it does, but the classes that it draws do."""


class ImbalancedDatasetSampler(Drawn):
    """Has the interface of torchsampler's."""

    def __init__(self, num_samples):
        super().__init__(num_samples)
        self.indices, self.num_samples = list(range(SIZE)), num_samples
        self.weights = 1.0 / torch.bincount(LABELS)[LABELS]

    def draw(self, rng):
        return torch.multinomial(self.weights, self.num_samples, replacement=True).numpy()


class MPerClassSampler(Drawn):
    """Has the interface of pytorch-metric-learning's."""

    def __init__(self, labels, m, batch_size=None, length_before_new_iter=64):
        super().__init__(length_before_new_iter)
        self.m_per_class, self.batch_size, self.labels = m, batch_size, list(range(4))

    def draw(self, rng):
        order = np.concatenate([rng.permutation(4) for _ in range(20)])
        blocks = [rng.choice(np.flatnonzero(c == LABELS), self.m_per_class) for c in order]
        return np.concatenate(blocks)[: self.length]


class Fold(Drawn):
    """The samples of one fold, in another order in each epoch."""

    def draw(self, rng):
        return rng.permutation(self.length)


class ClassOfInterestSampler(Fold):
    """Its name could also be that of a sampler that balances."""


class Varying(Drawn):
    """Another part of the data in each epoch, with about its class mix."""


class OverSampler(Drawn):
    """Leaves out the classes after the first, whatever its name says."""

    def draw(self, rng):
        return rng.choice(96, self.length)


def shown(sampler, **settings):
    return DataLoader(Indexed(), batch_size=8, sampler=sampler, **settings)


REMOVE = r"to balance it, but FairSampling balances by itself\. Remove the sampler"
SUBSET = r"draws from a part of its data set with \w+ \(.*Use torch\.utils\.data\.Subset"
BOTH = r"If \w+ balances the classes, remove it.*If it leaves samples out on purpose, use torch\.utils\.data\.Subset"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (RandomUnderSampler, REMOVE),
        (BalanceClassSampler, REMOVE),
        (Evened, REMOVE),
        (Fold, SUBSET),
        (ClassOfInterestSampler, BOTH),
        (Varying, BOTH),
        (lambda: OverSampler(40), BOTH),
    ],
    ids=["undersampling", "balanced classes", "without a name", "fold", "one class", "varying", "without a class"],
)
@pytest.mark.parametrize("in_bulk", [False, True], ids=["samples", "in bulk"])
def test_purpose_of_a_short_sampler(make, message, in_bulk):
    """A sampler that balances is told from one that selects, by two of its epochs and its name."""
    sampler, state = make(), torch.get_rng_state()
    data = shown(sampler)
    if in_bulk:
        data = DataLoader(Indexed(), batch_size=None, sampler=BatchSampler(sampler, 8, drop_last=False))
    with pytest.raises(ValueError, match=message):
        check_loader(data)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("make", "message"), [(RandomUnderSampler, REMOVE), (Evened, BOTH), (Fold, SUBSET)])
def test_short_sampler_of_several_labels(make, message):
    """If samples have several labels, the name of a sampler tells what it does, or nothing does."""
    data = TensorDataset(torch.zeros(SIZE, 2), torch.stack([LABELS % 2, LABELS // 2], dim=1))
    with pytest.raises(ValueError, match=message):
        check_loader(DataLoader(data, batch_size=8, sampler=make()))


@pytest.mark.parametrize("batch_size", [None, 8])
def test_short_sampler_of_pairs(batch_size):
    """A sampler with several samples of each class is accepted, however few it draws: a warning tells what is lost."""
    check_loader(shown(MPerClassSampler(LABELS, 4, batch_size)))


def test_weights_of_all_samples():
    """A sampler whose weights are all positive can draw every sample, however few it draws."""
    check_loader(shown(ImbalancedDatasetSampler(40)))
    check_loader(shown(WeightedRandomSampler([1.0] * SIZE, 40)))
    assert ignored_sampler(shown(ImbalancedDatasetSampler(40))) == "ImbalancedDatasetSampler"


def test_sampler_that_cannot_be_iterated():
    """If a sampler fails, both remedies are named."""

    class Fails(Drawn):
        def __iter__(self):
            raise RuntimeError("no process group")

    with pytest.raises(ValueError, match=BOTH):
        check_loader(shown(Fails()))


class Endless(Sampler):
    def __iter__(self):
        while True:
            yield from torch.randperm(SIZE).tolist()


def test_endless_sampler():
    """A sampler that never ends is asked for a few batches only."""
    check_loader(shown(Endless()))
    assert samples_per_class(shown(Endless()), LABELS.numpy()) is None


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: shown(MPerClassSampler(LABELS, 4)), 4),
        (lambda: DataLoader(Indexed(), batch_sampler=BatchSampler(MPerClassSampler(LABELS, 2), 8, drop_last=True)), 2),
    ],
    ids=["4", "2"],
)
def test_samples_per_class(make, expected):
    """Several samples of each class in a batch are noticed, without reading a sample."""
    assert samples_per_class(make(), LABELS.numpy()) == expected
    assert samples_per_class(make(), np.arange(SIZE)) is None


def test_classes_that_batches_cut():
    """The first and the last class of a batch may be cut off."""
    labels = np.arange(SIZE) % 20
    in_groups = np.argsort(labels, kind="stable").reshape(20, -1)[:, :3].ravel()
    assert samples_per_class(DataLoader(Indexed(), 8, sampler=in_groups.tolist()), labels) == 3


@pytest.mark.parametrize("seed", range(20))
def test_chance_makes_no_pairs(seed):
    """Independent draws of few classes, where a batch may have two of each by chance."""
    torch.manual_seed(seed)
    weights = 1.0 / torch.bincount(LABELS)[LABELS]
    assert samples_per_class(shown(WeightedRandomSampler(weights, SIZE)), LABELS.numpy()) is None
    assert samples_per_class(shown(RandomSampler(Indexed())), LABELS.numpy()) is None


class Pool(Sampler):
    """Draws a few samples, anew in each epoch, of a part of the data that it does not show."""

    def __init__(self, balances):
        half = np.arange(0, SIZE, 2)
        rare = int(np.bincount(LABELS[half]).min())
        self.parts = [half[LABELS[half] == c] for c in range(4)] if balances else [half]
        self.size = rare if balances else 40

    def __len__(self):
        return len(self.parts) * self.size

    def __iter__(self):
        return iter(
            np.concatenate([np.random.default_rng().permutation(part)[: self.size] for part in self.parts]).tolist()
        )


@pytest.mark.parametrize("batch_size", [4, 16, 24, 40])
@pytest.mark.parametrize("balances", [False, True])
def test_short_sampler_of_a_part(balances, batch_size):
    """A short sampler of a hidden part of the data is an error at any batch size, which names the subset."""
    with pytest.raises(ValueError, match=r"torch\.utils\.data\.Subset"):
        check_loader(DataLoader(Indexed(), batch_size, sampler=Pool(balances)))


def test_batches_of_one_class_are_no_pairs():
    """Data that are sorted by class have one class in a batch."""
    assert samples_per_class(shown(SequentialSampler(Indexed())), LABELS.numpy()) is None


class Repeat:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from self.sampler


class Pairs:
    """Makes batches without a ``BatchSampler``."""

    batch_size = 2

    def __iter__(self):
        return iter([[0, 1], [2, 3]])


def test_kind_of_batches():
    """A loader reads in bulk if its sampler yields lists of indices and nothing makes batches of them."""
    dataset = TensorDataset(torch.arange(10))
    batches = BatchSampler(RandomSampler(dataset), 4, drop_last=False)
    bulk = DataLoader(dataset, batch_size=None, sampler=batches)
    assert reads_in_bulk(bulk)
    assert batch_sampler(bulk) is batches
    assert batch_size(bulk) == 4
    assert ignored_sampler(bulk) is None
    assert batch_size(DataLoader(dataset, batch_size=None, sampler=Pairs())) == 2
    assert ignored_sampler(DataLoader(dataset, batch_size=None, sampler=Pairs())) == "Pairs"
    assert batch_sampler(DataLoader(dataset, batch_sampler=Repeat(batches))) is batches
    assert batch_sampler(DataLoader(dataset, batch_size=None, sampler=Repeat(batches))) is batches
    for loader in (
        DataLoader(dataset, batch_size=None),
        DataLoader(dataset, batch_size=None, sampler=MPerClassSampler(LABELS, 4, batch_size=8)),
    ):
        assert not reads_in_bulk(loader)
        with pytest.raises(ValueError, match=r"batch_size=None.*Set batch_size\..*sampler=BatchSampler\(RandomSampler"):
            batch_size(loader)
    assert not reads_in_bulk(DataLoader(dataset, 4))
