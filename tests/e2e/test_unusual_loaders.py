"""Training loaders out of the ordinary: each works, or the remedy in its error works."""

import itertools
import re

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning_helpers import (
    BATCH,
    BATCHES,
    Indexed,
    Weighted,
    fit,
    loader,
    moving,
    recorded_draws,
    warnings_about,
    wrong_steps,
)
from loader_runs import Bulk, Chained, KeepsWorkers, Repeated, Wrapper, in_bulk
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_fair import FairDataModule, FairSampling

SIZE = len(Indexed())


def train(data, fair=None, module=None, **settings):
    """Return the module after a fit without any warning about the loader."""
    module, fair = module or Weighted(), fair or moving()
    with warnings_about("") as warned:
        fit(module, data, fair, **settings)
    assert [message for message in warned if "Fair" in message or "DataLoader of" in message] == []
    assert fair.controller.draws == len(module.steps)
    return module


class Loads(L.LightningDataModule):
    def __init__(self, train_dataloader):
        super().__init__()
        self.train_dataloader = train_dataloader


# -- reading in bulk ---------------------------------------------------------------------------------------


def tensors():
    y = Indexed().targets
    return TensorDataset(torch.randn(SIZE, 4), y, torch.arange(SIZE))


@pytest.mark.parametrize("way", ["trainer", "data module", "data module around the loader"])
def test_tensors_in_bulk(way):
    """Tensors that are indexed with a whole batch: the batches are those of a loader that collates samples."""
    dataset, fair, plain, expected = tensors(), moving(), moving(), Weighted()
    fit(expected, loader(dataset), plain, max_epochs=2)
    if way == "trainer":
        module = train(in_bulk(dataset), fair, max_epochs=2)
    else:
        data = Loads(lambda: in_bulk(dataset))
        data = FairDataModule(data, fair=fair) if way == "data module around the loader" else data
        fit(module := Weighted(), data, *([] if isinstance(data, FairDataModule) else [fair]), max_epochs=2)
    assert [step.indices for step in module.steps] == [step.indices for step in expected.steps]
    assert np.allclose([step.weights for step in module.steps], [step.weights for step in expected.steps])
    assert fair._run.label_check.relation == "labels"  # verified


def test_hugging_face_data_in_bulk():
    datasets = pytest.importorskip("datasets")
    columns = {"x": torch.randn(SIZE, 4).tolist(), "label": Indexed().targets.tolist(), "index": list(range(SIZE))}
    dataset = datasets.Dataset.from_dict(columns).with_format("torch")

    class Reads(Weighted):
        def training_step(self, batch, batch_idx):
            return self.record(batch["x"], batch["label"], batch["index"])

    module = train(in_bulk(dataset), FairSampling(seed=0), Reads())
    assert all(np.bincount(step.labels).tolist() == [2, 2, 2, 2] for step in module.steps)


def test_class_mix_in_bulk_without_trainer():
    """``FairDataModule.train_dataloader()`` reads in bulk as well."""
    data = FairDataModule(Loads(in_bulk)).train_dataloader()
    assert len(data) == BATCHES
    assert [np.bincount(y).tolist() for _, y, _ in data] == [[2, 2, 2, 2]] * BATCHES


def test_labels_are_scanned_in_bulk(tmp_path, monkeypatch):
    """``labels="scan"`` reads single samples of the same data set."""
    monkeypatch.setenv("LIGHTNING_FAIR_CACHE", str(tmp_path))
    train(in_bulk(tensors()), moving(labels="scan"))


def test_samplers_in_bulk():
    """A sampler inside the batches is judged as in any other loader."""
    with pytest.raises(ValueError, match=r"part of its data set with SubsetRandomSampler.*Subset\("):
        train(in_bulk(sampler=lambda _: SubsetRandomSampler(range(80))))
    train(in_bulk(Subset(tensors(), range(4, SIZE))))
    with pytest.warns(UserWarning, match="WeightedRandomSampler of the training DataLoader has no effect. Remove it"):
        fit(Weighted(), in_bulk(sampler=lambda _: WeightedRandomSampler([1.0] * SIZE, SIZE)), moving())


def test_single_samples_are_refused():
    """Without batches there is nothing to balance; both remedies of the error work."""
    message = r"Set batch_size\. .*sampler=BatchSampler\(RandomSampler\(dataset\), batch_size=\.\.\., drop_last=False\)"
    with pytest.raises(ValueError, match=message):
        train(DataLoader(Indexed(), batch_size=None, shuffle=True))
    train(DataLoader(Indexed(), batch_size=BATCH, shuffle=True))
    dataset = Bulk()
    train(
        DataLoader(
            dataset, batch_size=None, sampler=BatchSampler(RandomSampler(dataset), batch_size=BATCH, drop_last=False)
        )
    )


# -- loaders inside others -----------------------------------------------------------------------------------


def test_wrapper_itself_is_unchanged():
    """A copy of the wrapper is trained on, which shares nothing that the training sets."""
    theirs = loader()
    wrapper = Wrapper(theirs)
    train(wrapper)
    assert (wrapper.loader, wrapper.num_batches) == (theirs, 0)
    assert [len(y) for _, y, _ in wrapper] == [BATCH] * BATCHES


def test_one_loader_under_two_names():
    wrapper = Wrapper(loader())
    wrapper.same = [wrapper.loader]
    train(wrapper)


def test_wrapper_of_several_loaders_is_refused():
    """Both remedies of the error work."""
    first, second = Indexed(), Indexed((10, 10, 10, 10))
    with pytest.raises(TypeError, match=r"Chained takes its batches from 2 DataLoaders.*ConcatDataset.*dict"):
        train(Chained([loader(first), loader(second)]))
    train(loader(ConcatDataset([first, second])))

    class Among(Weighted):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["first"], batch_idx)

    train({"first": loader(first), "second": loader(second)}, moving(dataloader="first"), Among())


@pytest.mark.parametrize(
    "make",
    [
        lambda: iter(loader()),
        lambda: (batch for batch in loader()),
        lambda: itertools.cycle(loader()),
        lambda: zip(loader(), strict=True),
        lambda: itertools.chain(loader(), loader()),
        lambda: itertools.chain(iter(loader())),
        lambda: FastTensorLoader(*tensors().tensors),
        list,
    ],
    ids=["iterator", "generator", "cycle", "zip", "chain of two", "chain of an iterator", "tensors", "nothing"],
)
def test_iterables_without_a_loader_are_refused(make):
    """An iterable that shows no loader cannot be steered; the loader itself can."""
    with pytest.raises(TypeError, match=r"Only a torch.utils.data.DataLoader can be made fair, got \w+"):
        train(make())


@pytest.mark.parametrize("key", [None, 0, "both"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"both": [loader(), loader()]}, r"and those of 'both' are several\. .*a dict of them without lists"),
        (lambda: [[loader(), loader()]], r"and those of 0 are several"),
        (lambda: {"both": [loader(), loader()], "one": loader()}, r": 'one'\. Choose one .*dataloader='one'"),
        (lambda: [[torch.ones(2), torch.zeros(2)]], r"and there is none\. Return a DataLoader"),
        (lambda: [torch.ones(2), loader()], r": 1\. Choose one .*dataloader=1"),
        (list, r"and there is none|got list"),
        (dict, r"and there is none|got dict"),
    ],
    ids=["dict of a list", "list of a list", "one beside a list", "a batch", "a tensor", "empty list", "empty dict"],
)
def test_what_can_be_chosen_is_told(make, message, key):
    """The error names the loaders that a key can choose; of lists within lists there are none."""
    if key == 0 and message.startswith(r": 1"):
        pytest.skip("the tensor itself is chosen")
    with pytest.raises((TypeError, ValueError), match=message):
        train(make(), moving(dataloader=key))


@pytest.mark.parametrize("key", [None, "a"])
def test_choice_without_a_trainer(key):
    """A fair data module outside of a fit tells the same."""
    for loaders, message in (
        ([], "there is none"),
        ([torch.ones(2)] * 2, "there is none"),
        ([loader()] * 2, r": 0, 1\. "),
    ):
        with pytest.raises(ValueError, match=message):
            FairDataModule(Loads(lambda given=loaders: given), fair=FairSampling(dataloader=key)).train_dataloader()


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        return iter(self.inner)


@pytest.mark.parametrize(
    "make", [Slotted, lambda inner: Wrapper(Wrapper(Wrapper(Wrapper(inner))))], ids=["slots", "four"]
)
def test_wrappers_that_hide_their_loader(make):
    """A loader in ``__slots__``, or four wrappers deep, is not seen; the error says so."""
    with pytest.raises(TypeError, match=r"none among its attributes \(not in __slots__, and at most 3 wrappers deep\)"):
        train(make(loader()))
    train(Wrapper(Wrapper(Wrapper(loader()))))


def test_list_of_batches_as_batch_sampler():
    batches = [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(
        ValueError, match=r"batch sampler list has no attribute batch_size\. Pass DataLoader\(batch_size"
    ):
        train(DataLoader(Indexed(), batch_sampler=batches))


def test_chain_that_has_begun_is_refused():
    chain = itertools.chain(loader())
    next(chain)
    with pytest.raises(TypeError, match="got chain"):
        train(chain)


class FastTensorLoader:
    """Slices tensors, without a ``DataLoader``."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __iter__(self):
        for indices in torch.randperm(SIZE).split(BATCH):
            yield tuple(tensor[indices] for tensor in self.tensors)


class Splits(Wrapper):
    """Makes two batches of one."""

    def __iter__(self):
        for batch in self.loader:
            yield [part[:4] for part in batch]
            yield [part[4:] for part in batch]


class Skips(Wrapper):
    """Leaves out every other batch."""

    def __iter__(self):
        for number, batch in enumerate(self.loader):
            if number % 2:
                yield batch


class Cuts(Wrapper):
    """Ends after five batches."""

    def __len__(self):
        return 5

    def __iter__(self):
        return itertools.islice(self.loader, 5)


@pytest.mark.parametrize(("kind", "steps"), [(Splits, 1), (Skips, 9)])
def test_wrapper_that_changes_the_batches_is_refused(kind, steps):
    """A batch without a draw of its own is an error, and so are draws that are never delivered."""
    with pytest.raises(RuntimeError, match=rf"{kind.__name__}\.__iter__ (delivered a batch|leaves batches out)"):
        fit(module := Weighted(), kind(loader()), moving())
    assert len(module.steps) <= steps


def test_wrapper_has_its_own_length():
    module = train(Cuts(loader()), max_epochs=3)
    assert len(module.steps) == 15


@pytest.mark.parametrize("kind", [in_bulk, lambda data: Wrapper(loader(data)), KeepsWorkers])
def test_labels_that_change(kind):
    """The batches of the next epoch follow the new labels."""

    class Relabels(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            dataset.targets = 3 - dataset.targets

    dataset = Bulk() if kind is in_bulk else Indexed()
    settings = {"batch_size": BATCH} if kind is KeepsWorkers else {}
    fair, module = FairSampling(), Weighted()
    with pytest.warns(UserWarning, match="160 samples have changed: the batches follow the new ones"):
        fit(module, kind(dataset, **settings), fair, Relabels(), max_epochs=3)
    assert len(module.steps) == 3 * BATCHES
    assert all(np.bincount(step.labels).tolist() == [2, 2, 2, 2] for step in module.steps)
    assert fair._run.label_check.relation == "labels"


# -- an __iter__ of one's own --------------------------------------------------------------------------------


class OwnBatches(DataLoader):
    def __iter__(self):
        for indices in BatchSampler(self.sampler, self.batch_size, drop_last=False):
            yield self.collate_fn([self.dataset[index] for index in indices])


class OwnIndices(DataLoader):
    def __iter__(self):
        for indices in torch.randperm(len(self.dataset)).split(self.batch_size):
            yield self.collate_fn([self.dataset[index] for index in indices])


class OwnSource(Wrapper):
    """Reads its loader's data set, and not the loader."""

    def __iter__(self):
        for indices in torch.randperm(SIZE).split(BATCH):
            yield self.loader.collate_fn([self.loader.dataset[index] for index in indices])


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnBatches(Indexed(), BATCH, shuffle=True),
        lambda: OwnIndices(Indexed(), BATCH, shuffle=True),
        lambda: OwnSource(loader()),
    ],
    ids=["own batches", "own indices", "own source"],
)
def test_batches_past_the_batch_sampler_are_refused(make):
    """The first batch shows that nothing was drawn for it, so the error comes before the first training step."""
    module, data = Weighted(), make()
    with pytest.raises(RuntimeError, match=rf"{type(data).__name__}\.__iter__ delivered a batch that .* not drawn"):
        fit(module, data, moving())
    assert module.steps == []


class AsAdvised(DataLoader):
    """Makes its batches out of those of the batch sampler."""

    def __iter__(self):
        for indices in self.batch_sampler:
            yield self.collate_fn([self.dataset[index] for index in indices])


class Converts(DataLoader):
    def __iter__(self):
        for x, y, index in super().__iter__():
            yield x + 1, y, index


@pytest.mark.parametrize("kind", [AsAdvised, Converts])
def test_own_iterator_over_drawn_batches(kind):
    train(kind(Indexed(), BATCH, shuffle=True), max_epochs=2)


def test_iterator_that_is_kept_is_made_again():
    """A class that keeps its workers gets new batches after an epoch that was cut short, and keeps its own loader."""
    theirs = KeepsWorkers(Indexed(), BATCH, shuffle=True)
    iterator = theirs.iterator
    train(theirs, max_epochs=3, limit_train_batches=5)
    assert theirs.iterator is iterator
    assert len(theirs) == BATCHES


class KeptIterator(Wrapper):
    """Makes the iterator of its loader at once, and uses it later."""

    def __init__(self, data):
        super().__init__(data)
        self.batches = iter(data)

    def __iter__(self):
        return self.batches


class Renews(Wrapper):
    """Makes the iterator of the next epoch at the end of an epoch."""

    batches = None

    def __init__(self, data):
        super().__init__(data)
        self.data = data

    def __iter__(self):
        return self

    def __next__(self):
        if self.batches is None:
            self.batches = iter(self.data)
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.data)
            raise


class InfiniteLoader(DataLoader):
    """Begins again by itself, with an iterator that it makes at once."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.batches = super().__iter__()

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = super().__iter__()
            return next(self.batches)


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [KeptIterator, Renews, InfiniteLoader])
def test_iterator_that_is_made_at_once(kind, workers, limit):
    """An iterator of the plain loader is not used, although the class has made it already."""
    data = loader(num_workers=workers)
    if kind is InfiniteLoader:
        data = InfiniteLoader(Indexed(), BATCH, shuffle=True, num_workers=workers)
    module, fair = Weighted(), moving()
    with recorded_draws() as draws:
        fit(module, data if kind is InfiniteLoader else kind(data), fair, max_epochs=3, limit_train_batches=limit)
    assert len(module.steps) == 3 * (limit or BATCHES)
    assert wrong_steps(module.steps, draws) == 0


# -- loaders that never end ----------------------------------------------------------------------------------


class TrainingSampler(Sampler):
    """Draws for ever, as the sampler of detectron2 does."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        while True:
            yield from torch.randperm(self.size).tolist()


class EndlessBatches:
    batch_size = BATCH

    def __iter__(self):
        while True:
            yield from torch.randperm(SIZE).view(-1, BATCH).tolist()


class EndlessLoader(DataLoader):
    def __len__(self):
        raise TypeError("endless")

    def __iter__(self):
        while True:
            yield from super().__iter__()


ENDLESS = {
    "TrainingSampler": lambda: DataLoader(Indexed(), BATCH, sampler=TrainingSampler(SIZE)),
    "EndlessBatches": lambda: DataLoader(Indexed(), batch_sampler=EndlessBatches()),
    "TrainingSampler in bulk": lambda: in_bulk(sampler=lambda data: TrainingSampler(len(data))),
    "Repeated": lambda: DataLoader(
        Indexed(), batch_sampler=Repeated(BatchSampler(RandomSampler(Indexed()), BATCH, drop_last=False))
    ),
    "EndlessLoader": lambda: EndlessLoader(Indexed(), BATCH, shuffle=True),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_loader(name):
    """A loader without length needs ``steps_per_epoch``; the error names a number, which works."""
    with pytest.raises(ValueError, match=rf"no length, because {name.split()[0]} has none") as caught:
        train(ENDLESS[name](), max_steps=30, max_epochs=-1)
    steps = int(re.search(r"steps_per_epoch=\.\.\.\), for example (\d+)", str(caught.value)).group(1))
    assert steps == BATCHES
    module, fair = Weighted(), moving(steps_per_epoch=steps)
    with warnings_about("ended with") as warned:
        fitted = fit(module, ENDLESS[name](), fair, max_steps=30, max_epochs=-1)
    assert warned == []
    assert len(module.steps) == 30 == fair.controller.draws
    assert fitted.current_epoch == 2
    train(loader(), max_steps=30, max_epochs=-1)  # without the sampler


# -- samplers that balance, select, or make pairs --------------------------------------------------------------


class RandomUnderSampler(Sampler):
    """Draws as many samples of each class as the rarest has."""

    def __iter__(self):
        y = Indexed().targets
        classes = [(y == c).nonzero().flatten() for c in range(4)]
        size = min(map(len, classes))
        drawn = torch.cat([indices[torch.randperm(len(indices))[:size]] for indices in classes])
        return iter(drawn[torch.randperm(len(drawn))].tolist())

    def __len__(self):
        return 4 * int(Indexed().targets.bincount().min())


class FoldSampler(Sampler):
    def __init__(self, indices):
        self.fold = indices

    def __iter__(self):
        return iter(np.random.default_rng().permutation(self.fold).tolist())

    def __len__(self):
        return len(self.fold)


def test_sampler_that_balances():
    """The remedy is to remove it."""
    with pytest.raises(ValueError, match=r"RandomUnderSampler draws a part .* to balance it.*Remove the sampler"):
        train(DataLoader(Indexed(), BATCH, sampler=RandomUnderSampler()))
    train(DataLoader(Indexed(), batch_size=BATCH, shuffle=True))


def test_sampler_that_selects():
    """The remedy is a Subset."""
    fold = [index for index in range(SIZE) if index % 5]
    with pytest.raises(ValueError, match=r"part of its data set with FoldSampler \(128 of 160.*Subset\(dataset, ind"):
        train(DataLoader(Indexed(), BATCH, sampler=FoldSampler(fold)))
    module = train(DataLoader(Subset(Indexed(), fold), BATCH, shuffle=True), max_epochs=3)
    assert {index for step in module.steps for index in step.indices} <= set(fold)


class MPerClassSampler(Sampler):
    """Has ``m`` samples of each class of a batch, for a loss over pairs."""

    def __init__(self, labels, m):
        self.labels, self.m = np.asarray(labels), m

    def __iter__(self):
        rng, classes = np.random.default_rng(0), np.unique(self.labels)
        for _ in range(-(-len(self.labels) // (self.m * len(classes)))):
            for c in rng.permutation(classes):
                yield from rng.choice(np.flatnonzero(self.labels == c), self.m).tolist()

    def __len__(self):
        return len(self.labels)


def pairs(num_classes, batch_size, sampler=True):
    dataset = Indexed((9,) * num_classes)
    how = {"sampler": MPerClassSampler(dataset.targets, 4)} if sampler else {"shuffle": True}
    return dataset, DataLoader(dataset, batch_size=batch_size, **how)


def test_pairs_that_are_lost():
    """One warning says how many classes have no pair in a batch; its batch size gives each class a pair."""
    _, data = pairs(20, 16)
    with warnings_about("MPerClassSampler") as warned:
        fit(Weighted(20), data, FairSampling())
    (message,) = warned
    assert "puts 4 samples of each of its classes into a batch" in message
    assert "a fair batch of 16 samples has fewer than two of 20 of the 20 classes" in message
    size = int(re.search(r"Set batch_size=(\d+) or more", message).group(1))
    assert size == 40
    module = train(pairs(20, size, sampler=False)[1], FairSampling(), Weighted(20))
    assert all((np.bincount(step.labels, minlength=20) >= 2).all() for step in module.steps)


@pytest.mark.parametrize(
    ("num_classes", "batch_size", "sampler"),
    [(10, 64, MPerClassSampler), (4, 8, MPerClassSampler), (20, 16, WeightedRandomSampler)],
)
def test_pairs_that_stay(num_classes, batch_size, sampler):
    """With two samples of each class, or a sampler that makes no pairs, only the sampler's name is in the warning."""
    dataset, data = pairs(num_classes, batch_size)
    if sampler is WeightedRandomSampler:
        data = DataLoader(dataset, batch_size, sampler=WeightedRandomSampler([1.0] * len(dataset), len(dataset)))
    with warnings_about(sampler.__name__) as warned:
        fit(Weighted(num_classes), data, FairSampling())
    (message,) = warned
    assert "has no effect. Remove it; target_probs sets the class mix." in message


class TrainingPart:
    """An endless sampler over a part of the data set that it does not show."""

    def __init__(self, indices):
        self.part = indices

    def __iter__(self):
        while True:
            yield from np.random.default_rng(0).permutation(self.part).tolist()


def test_endless_sampler_of_a_part():
    """A part that only drawing would show is named in the warning, and its remedy works."""
    part = range(0, SIZE, 2)
    with warnings_about("has no effect") as messages:
        data = DataLoader(Indexed(), BATCH, sampler=TrainingPart(part))
        fit(Weighted(), data, moving(steps_per_epoch=5))
    assert "If it leaves samples out on purpose, use torch.utils.data.Subset" in messages[0]
    module = train(loader(Subset(Indexed(), part)))
    assert {index for step in module.steps for index in step.indices} <= set(part)


class OwnOrder(RandomSampler):
    """Draws a part of the data in an ``__iter__`` of its own."""

    def __init__(self, data, part, shows_length):
        super().__init__(data)
        self.part, self.shows_length = list(part), shows_length

    def __len__(self):
        return len(self.part) if self.shows_length else len(self.data_source)

    def __iter__(self):
        return iter(np.random.default_rng(0).permutation(self.part).tolist())


class Filters:
    """Leaves samples out of the batches of another batch sampler."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return ([index for index in batch if index % 2] for batch in self.batch_sampler)


class Shuffles(Filters):
    """Changes the order of the batches only."""

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        batches = list(self.batch_sampler)
        return iter(batches[::-1])


def with_batches_of(kind):
    return DataLoader(Indexed(), batch_sampler=kind(BatchSampler(RandomSampler(Indexed()), BATCH, drop_last=False)))


def renamed():
    kind = type("BatchSampler", (Filters,), {"batch_size": BATCH})
    return with_batches_of(kind)


SILENT = {
    "subclass of torch's": lambda: DataLoader(Indexed(), BATCH, sampler=OwnOrder(Indexed(), range(50), False)),
    "filter": lambda: with_batches_of(Filters),
    "named as torch's": renamed,
    "order": lambda: with_batches_of(Shuffles),
}


@pytest.mark.parametrize("kind", SILENT)
def test_samplers_like_those_of_torch(kind):
    """A sampler that looks like one of torch's, but may leave samples out, is not ignored without a word."""
    with warnings_about("has no effect") as messages:
        fit(Weighted(), SILENT[kind](), moving(steps_per_epoch=4))
    assert "use torch.utils.data.Subset" in messages[0]


def test_short_subclass_of_torchs_sampler():
    with pytest.raises(ValueError, match=r"OwnOrder \(50 of 160 samples\)"):
        train(DataLoader(Indexed(), BATCH, sampler=OwnOrder(Indexed(), range(50), True)))


@pytest.mark.parametrize("shuffle", [True, False])
def test_stateful_loader_has_no_sampler_of_the_users(shuffle):
    """The samplers of torchdata are those of torch."""
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    train(torchdata.StatefulDataLoader(Indexed(), BATCH, shuffle=shuffle))
