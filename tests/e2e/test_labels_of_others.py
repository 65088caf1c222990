"""Labels that belong to other samples: of another length, another split, another epoch, another part of the data.

Each situation is written as users write it. Either the weights and losses of every batch are those of its samples' own
classes, or there is an error, or one warning; then its remedy is applied and works.
"""

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from label_runs import CLASSES, EVEN, Classifier, N, X, complaint, loader, prior, train
from torch.utils.data import ConcatDataset, Dataset, Sampler, Subset, TensorDataset, WeightedRandomSampler, random_split

from lightning_fair import FairSampling

# -- labels that belong to other samples -------------------------------------------------------------------


class Filtered(Dataset):
    """Leaves out samples after ``targets`` was made."""

    def __init__(self):
        self.targets = CLASSES.tolist()
        self.kept = [index for index in range(N) if index % 7 and index > 20]

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        return X[self.kept[index]], self.targets[self.kept[index]]


class Repeated(Dataset):
    """Goes through its samples three times in an epoch."""

    def __init__(self):
        self.targets = CLASSES.tolist()

    def __len__(self):
        return 3 * N

    def __getitem__(self, index):
        return X[index % N], self.targets[index % N]


def half(dataset):
    return Subset(dataset, range(0, len(dataset), 2))


def split(dataset):
    return random_split(dataset, [0.5, 0.5], torch.Generator().manual_seed(0))[0]


def look_up(dataset):
    """Return the labels of a subset of a filtered or repeated data set."""
    inner, indices = dataset.dataset, np.asarray(dataset.indices)
    return np.array(inner.targets)[np.asarray(inner.kept)[indices] if hasattr(inner, "kept") else indices % N]


@pytest.mark.parametrize("kind", [Filtered, Repeated])
@pytest.mark.parametrize("part", [half, split, lambda dataset: dataset], ids=["Subset", "random_split", "itself"])
def test_targets_of_another_length(kind, part):
    """``targets`` that are not one per sample are refused, also inside a subset; two remedies work."""
    dataset = part(kind())
    with pytest.raises(ValueError, match="labels="):
        train(Classifier(), loader(dataset), prior())
    for labels in ("scan", look_up) if isinstance(dataset, Subset) else ("scan",):
        outcome = train(Classifier(), loader(dataset), prior(labels=labels))
        assert outcome.wrong() == []
        assert np.allclose(outcome.trained_mix(), EVEN)
        assert outcome.warned == []


class OwnSubset(Dataset):
    """A user's own subset class, here of all samples in another order."""

    def __init__(self, dataset):
        self.dataset, self.indices = dataset, np.random.default_rng(5).permutation(len(dataset))

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.dataset[int(self.indices[index])]


class PseudoLabels(Dataset):
    """Replaces the labels of a data set by those that a model gave."""

    def __init__(self, dataset):
        self.dataset, self.given = dataset, np.random.default_rng(6).permutation(CLASSES)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index][0], int(self.given[index])


def test_own_subset():
    """A user's own subset class is read as torch's is: by its ``dataset`` and ``indices``."""
    outcome = train(Classifier(), loader(OwnSubset(TensorDataset(X, torch.from_numpy(CLASSES)))), prior())
    assert outcome.wrong() == []
    assert np.allclose(outcome.trained_mix(), EVEN)
    assert outcome.warned == []


def test_pseudo_labels():
    """A wrapper whose samples have other labels than the data set inside is warned of; two remedies work."""
    dataset = PseudoLabels(TensorDataset(X, torch.from_numpy(CLASSES)))
    assert "labels=" in complaint(Classifier(), loader(dataset), prior())
    for labels in ("scan", "given"):
        outcome = train(Classifier(), loader(dataset), prior(labels=labels))
        assert outcome.wrong() == []
        assert np.allclose(outcome.trained_mix(), EVEN)
        assert outcome.warned == []


class Offset(Dataset):
    """One of several domains: adds a number to the labels of the data set inside."""

    def __init__(self, dataset, first):
        self.dataset, self.first = dataset, first

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return x, int(y) + self.first


def test_domains():
    """If a wrapper numbers the classes of each domain anew, the labels inside are not trained on: one warning."""
    part = TensorDataset(X, torch.from_numpy(CLASSES % 2))
    data = loader(ConcatDataset([Offset(part, 0), Offset(part, 2)]))
    assert "labels='scan'" in complaint(Classifier(), data, prior())
    outcome = train(Classifier(), data, prior(labels="scan"))
    assert outcome.wrong() == []
    assert np.allclose(outcome.trained_mix(), EVEN)
    assert outcome.warned == []


class SplitsAnew(L.LightningDataModule):
    """Splits the data in ``setup``, without a seed unless it gets one."""

    def __init__(self, seed=None):
        super().__init__()
        self.seed = seed

    def setup(self, stage):
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        full = TensorDataset(X, torch.from_numpy(CLASSES))
        self.training, self.validation = random_split(full, [128, 32], generator)

    def train_dataloader(self):
        return loader(self.training)


def test_labels_of_an_earlier_split():
    """Labels of a split that ``setup`` makes anew belong to other samples: one warning, and three remedies."""
    torch.manual_seed(0)
    for data, count in ((SplitsAnew(), 1), (SplitsAnew(seed=1), 0)):
        data.setup("fit")
        labels = [int(y) for _, y in data.training]
        outcome = train(Classifier(), data, prior(labels=labels))
        assert len(outcome.warned) == count
        assert all("labels=" in message for message in outcome.warned)
        assert bool(outcome.wrong()) == count
    for labels in (None, lambda dataset: [int(y) for _, y in dataset]):
        outcome = train(Classifier(), SplitsAnew(), prior(labels=labels))
        assert outcome.wrong() == []
        assert outcome.warned == []


# -- data that move ----------------------------------------------------------------------------------------


class Pool(Dataset):
    """Samples and labels in NumPy arrays, which the training changes from epoch to epoch."""

    def __init__(self):
        self.x, self.targets = X.numpy().copy(), CLASSES.copy()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], self.targets[index]

    def grow(self, order):
        added = order[:40]
        self.x = np.concatenate([self.x, self.x[added]])
        self.targets = np.concatenate([self.targets, self.targets[added]])

    def replace(self, order):
        self.x, self.targets = self.x[order], self.targets[order]

    def relabel(self, order):
        self.targets[:] = self.targets[order]

    def shuffle(self, order):
        self.x[:], self.targets[:] = self.x[order], self.targets[order]


class Moves(L.Callback):
    def __init__(self, pool, change):
        self.change, self.generator = getattr(pool, change), np.random.default_rng(0)

    def move(self):
        self.change(self.generator.permutation(N))


class MovesAtEnd(Moves):
    def on_train_epoch_end(self, trainer, pl_module):
        self.move()


class MovesAtStart(Moves):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.move()


@pytest.mark.parametrize("reload", [0, 1])
@pytest.mark.parametrize("moves", [MovesAtEnd, MovesAtStart])
@pytest.mark.parametrize("change", ["replace", "relabel", "shuffle"])
def test_data_move_between_epochs(change, moves, reload):
    """Data that are replaced, relabelled or shuffled in place between epochs are balanced in every epoch."""
    pool = Pool()
    outcome = train(
        Classifier(), loader(pool), FairSampling(), moves(pool, change), reload_dataloaders_every_n_epochs=reload
    )
    assert outcome.wrong() == []
    for epoch in range(3):
        assert np.allclose(outcome.trained_mix(epoch), EVEN), epoch


@pytest.mark.parametrize("reload", [0, 1])
def test_data_grow(reload):
    """In active learning the data grow between epochs: the samples that were added are drawn, and all is balanced."""
    pool = Pool()
    moves, settings = MovesAtEnd(pool, "grow"), {"reload_dataloaders_every_n_epochs": reload}
    outcome = train(Classifier(), loader(pool), FairSampling(seed=1), moves, **settings)
    assert outcome.fair.sampler.labels.size == N + 80
    assert outcome.wrong() == []
    assert np.allclose(outcome.trained_mix(), EVEN)


@pytest.mark.parametrize("labels", [CLASSES.tolist(), "scan"], ids=["given", "scan"])
@pytest.mark.parametrize("change", ["relabel", "replace"])
def test_given_labels_of_data_that_move(change, labels):
    """Labels that were given or read once are wrong after the data move: one warning; a function of the data works."""
    pool = Pool()
    outcome = train(Classifier(), loader(pool), FairSampling(labels=labels), MovesAtEnd(pool, change))
    assert len(outcome.warned) == 1
    assert "labels=" in outcome.warned[0]
    assert outcome.wrong()[0] >= outcome.fair.sampler.steps_per_epoch  # from the change on
    pool = Pool()
    fair = FairSampling(labels=lambda data: data.targets)
    outcome = train(Classifier(), loader(pool), fair, MovesAtEnd(pool, change))
    assert outcome.wrong() == []


# -- samplers ----------------------------------------------------------------------------------------------


class Balanced(Sampler):
    """As of a package for imbalanced data: draws from the samples in ``indices``."""

    def __init__(self, dataset, indices=None, num_samples=None):
        self.indices = list(range(len(dataset))) if indices is None else list(indices)
        self.num_samples = num_samples or len(self.indices)

    def __len__(self):
        return self.num_samples

    def __iter__(self):
        return iter(np.random.default_rng(0).choice(self.indices, self.num_samples).tolist())


HELD_OUT = np.arange(N) % 5 == 0
KEPT = np.flatnonzero(~HELD_OUT).tolist()
SAMPLERS = {
    "weights of zero": lambda data: WeightedRandomSampler(np.where(HELD_OUT, 0.0, 1.0).tolist(), N),
    "indices": lambda data: Balanced(data, KEPT),
    "indices, as many samples": lambda data: Balanced(data, KEPT, N),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_sampler_leaves_samples_out(make):
    """A sampler that never draws some samples is refused; a ``Subset`` without them is the remedy."""
    data = TensorDataset(X, torch.from_numpy(CLASSES))
    with pytest.raises(ValueError, match="Subset"):
        train(Classifier(), loader(data, sampler=make(data), shuffle=None), prior())
    outcome = train(Classifier(), loader(Subset(data, KEPT)), prior())
    assert not HELD_OUT[np.concatenate([step.indices for step in outcome.steps])].any()
    assert outcome.wrong() == []


def test_sampler_of_all_samples():
    """A weighted sampler of all samples is replaced, with one warning."""
    data = TensorDataset(X, torch.from_numpy(CLASSES))
    sampler = WeightedRandomSampler((1.0 / np.bincount(CLASSES))[CLASSES].tolist(), N)
    outcome = train(Classifier(), loader(data, sampler=sampler, shuffle=None), prior())
    assert outcome.wrong(CLASSES) == []
    assert len(outcome.warned) == 1
