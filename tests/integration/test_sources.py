import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning_helpers import (
    BATCH,
    TARGET,
    WORKERS,
    Indexed,
    KeysAndNames,
    Weighted,
    assert_nothing_left,
    fit,
    loader,
    moving,
    trainer,
    warnings_about,
)
from stream_runs import mixed
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackController, schedules


class OwnLoader(Weighted):
    def train_dataloader(self):
        return loader()


@pytest.mark.parametrize("source", ["loader", "data module", "module", "dict", "subset", "concat", "labels", "scan"])
def test_every_loader_source_is_fair(source):
    """Every source of a training loader is made fair."""
    settings, data, module = {}, loader(), Weighted()
    if source == "data module":
        data = KeysAndNames()
    elif source == "module":
        data, module = None, OwnLoader()
    elif source == "dict":
        data, module = {"images": loader()}, FromDict()
    elif source == "subset":
        data = loader(Subset(Indexed(), range(0, 160, 2)))
    elif source == "concat":
        data = loader(ConcatDataset([Indexed(), Indexed()]))
    elif source in ("labels", "scan"):
        data, settings = loader(Bare()), {"labels": Indexed().targets if source == "labels" else "scan"}
    fit(module, data, moving(lambda2=0.0, **settings), limit_train_batches=10)
    seen = np.bincount([y for step in module.steps for y in step.labels], minlength=4)
    # Class 0 has 0.6 of the data, so plain batches are twice the tolerance away.
    np.testing.assert_allclose(seen / 80, TARGET, atol=0.1)


class Bare(Dataset):
    """A data set without a list of its labels."""

    def __init__(self):
        self.inner = Indexed()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]


class FromDict(Weighted):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["images"], batch_idx)


@pytest.mark.parametrize("workers", WORKERS)
def test_users_loader_is_untouched(workers):
    """The user's loader and data set are untouched."""
    data = loader(num_workers=workers, persistent_workers=bool(workers))
    before, of_dataset = dict(data.__dict__), dict(data.dataset.__dict__)
    fit(Weighted(), data, moving(), max_epochs=2)
    assert data.__dict__.keys() == before.keys()
    assert all(data.__dict__[name] is value for name, value in before.items())
    assert all(data.dataset.__dict__[name] is value for name, value in of_dataset.items())
    assert type(data) is DataLoader


def test_users_datamodule_is_untouched():
    """The user's data module is untouched."""

    def state(data):
        return {name: value for name, value in vars(data).items() if name != "trainer"}, type(data)

    data, fairly = KeysAndNames(), KeysAndNames()
    fit(Weighted(), data, max_epochs=1, limit_train_batches=2)
    fit(Weighted(), fairly, moving(), max_epochs=1, limit_train_batches=2)
    assert state(data)[0].keys() == state(fairly)[0].keys()
    assert data.calls == fairly.calls
    assert state(data)[1] is state(fairly)[1] is KeysAndNames


def test_fair_loader_keeps_settings():
    """The fair loader has the settings of the user's loader."""
    data = loader(num_workers=2, pin_memory=False, timeout=30, prefetch_factor=3, drop_last=True)
    fitted = fit(Weighted(), data, moving(), limit_train_batches=2)
    theirs = fitted.train_dataloader
    for name in ("dataset", "num_workers", "timeout", "prefetch_factor", "drop_last", "batch_size", "collate_fn"):
        assert getattr(theirs, name) is getattr(data, name)
    assert isinstance(theirs, DataLoader)


def test_loader_with_new_batch_size():
    """The sampler follows a loader with another batch size."""

    class Growing(L.LightningDataModule):
        def train_dataloader(self):
            return loader(batch_size=8 if self.trainer.current_epoch == 0 else 16)

    module = Weighted()
    fit(module, Growing(), moving(), max_epochs=2, reload_dataloaders_every_n_epochs=1, limit_train_batches=3)
    assert [len(step.indices) for step in module.steps] == [8, 8, 8, 16, 16, 16]


def test_subset_samplers_are_refused():
    """The held-out half of a data set that is split by SubsetRandomSampler must not leak into training."""
    kept = list(range(0, 160, 2))
    data = DataLoader(Indexed(), batch_size=BATCH, sampler=torch.utils.data.SubsetRandomSampler(kept))
    with pytest.raises(ValueError, match=r"SubsetRandomSampler.*Subset\(dataset, indices\)"):
        fit(Weighted(), data, moving())
    inner = torch.utils.data.BatchSampler(torch.utils.data.SubsetRandomSampler(kept), BATCH, drop_last=False)
    with pytest.raises(ValueError, match="SubsetRandomSampler"):
        fit(Weighted(), DataLoader(Indexed(), batch_sampler=inner), moving())


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Indexed()[i] for i in range(16))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "is a stream"),
        (lambda: DataLoader(Indexed(), batch_size=None), "batch_size=None"),
        (lambda: {"a": loader(), "b": loader()}, r"one training .* several: 'a', 'b'\. .*loader='a'"),
        (lambda: [loader(), loader()], r"one training .* several: 0, 1\. .*loader=0"),
        (lambda: loader(Bare()), "labels='scan'"),
        (lambda: DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))), "empty"),
        (lambda: loader(Labelled([0, 1, 4, 1])), r"lie in \[0, 4\), got 4"),
        (lambda: loader(Labelled([0, 1, -1, 1])), "at least 0, got -1"),
        (lambda: loader(Labelled([0.0, 1.0, 2.0, 3.5])), "whole numbers or names, got 3.5 for sample 3"),
        (lambda: loader(Labelled([[0, 1], [1, 1]])), "num_classes must be 2, as the labels have 2 columns"),
        (lambda: loader(Labelled([0, 1, 1, 2])), "No samples of class 3"),
    ],
    ids=[
        "stream",
        "batch_size None",
        "two in a dict",
        "two in a list",
        "no labels",
        "empty",
        "label too large",
        "negative label",
        "float labels",
        "several labels",
        "class without samples",
    ],
)
def test_bad_data_is_refused(data, match):
    """Bad data is refused before the first step."""
    module, fitted = Weighted(), trainer(moving())
    with pytest.raises((TypeError, ValueError), match=match):
        fitted.fit(module, data())
    assert module.steps == []
    assert_nothing_left(fitted, module)


class Labelled(Dataset):
    def __init__(self, targets):
        self.targets = torch.tensor(targets)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.zeros(4), self.targets[index], index


def test_empty_class_is_skipped():
    """A class without samples is skipped on request."""
    module, fair = Weighted(), moving(empty_classes="skip")
    fit(module, loader(Labelled([0] * 10 + [1] * 10 + [2] * 10)), fair)
    np.testing.assert_allclose(fair.controller.q, [4 / 9, 3 / 9, 2 / 9, 0.0])
    assert {y for step in module.steps for y in step.labels} == {0, 1, 2}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"alpha": 200.0}, "largest stable alpha"),
        ({"min_prob": 0.25}, r"min_prob must lie in \[0, 0\.25\) \(1/K"),
        ({"target_probs": {0: 1.2}}, "target_probs"),
        ({"target_probs": {9: 0.2}}, "target_probs"),
        ({"target_probs": [0.5, 0.5]}, r"lie in \[0, 2\), got 3"),
        ({"num_classes": 3}, r"lie in \[0, 3\), got 3"),
        ({"num_classes": 6}, "No samples of class 4, 5"),
        ({"labels": [0, 1, 2]}, "got 3 for the 160 samples of Indexed"),
        ({"class_names": ["a", "b"]}, "class_names"),
    ],
    ids=str,
)
def test_setting_that_contradicts_data(settings, match):
    """A setting that does not fit the data is refused before the first step."""
    module, fitted = Weighted(), trainer(FairSampling(**settings))
    with pytest.raises(ValueError, match=match):
        fitted.fit(module, loader())
    assert module.steps == []
    assert_nothing_left(fitted, module)


def test_seed_everything_sets_draws(monkeypatch):
    """``seed_everything`` decides the draws."""

    def indices(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        module = Weighted()
        fit(module, loader(), moving(lambda2=0.0, seed=None), limit_train_batches=3)
        return [step.indices for step in module.steps]

    assert indices(1) == indices(1) != indices(2)


def test_stream_has_no_prior():
    """``reference="prior"`` is refused for a stream, even if the stream has a controller."""
    stream = FairStream([(torch.zeros(4), 0)] * 8, FeedbackController(2), batch_size=4)
    with pytest.raises(ValueError, match="A stream has no prior"):
        fit(Weighted(), DataLoader(stream, batch_size=4), FairSampling(reference="prior"))


CLIPPED = {"target_probs": "prior", "reference": "uniform", "max_weight": 3.0}


@pytest.mark.parametrize("kind", ["data", "stream"])
@pytest.mark.parametrize(
    ("remedy", "warns"),
    [({}, 1), ({"max_weight": 4.0}, 0), ({"target_probs": "sqrt"}, 0), ({"correction": "logits"}, 0)],
    ids=["clipped", "max_weight", "target_probs", "logits"],
)
def test_reference_beyond_the_bound_warns_once(kind, remedy, warns):
    """A reference that the draw cannot stand for within the bound is told once at set-up; each remedy ends it."""
    settings = {**CLIPPED, **remedy}
    if kind == "stream":  # which has no prior
        mixes = {"prior": [0.6, 0.2, 0.125, 0.075], "sqrt": [0.4, 0.25, 0.2, 0.15]}
        source = DataLoader(mixed(160, None), batch_size=8)
        settings["target_probs"] = mixes[settings["target_probs"]]
    else:
        source = loader()
    with warnings_about("clipped at max_weight=3") as warned:
        fit(Weighted(), source, FairSampling(**settings), max_epochs=2, reload_dataloaders_every_n_epochs=1)
    assert len(warned) == warns
    assert all("class 3 3.333 times" in text and "max_weight=4." in text for text in warned)


def test_reference_beyond_the_bound_on_the_way_warns():
    """A target that comes to the reference only at its end is judged by its start, too."""
    way = schedules.Shift(schedules.Linear(0.0, 1.0, 20), "prior", "uniform")
    with warnings_about("clipped at max_weight=3") as warned:
        fit(Weighted(), loader(), FairSampling(**{**CLIPPED, "target_probs": way}))
    assert len(warned) == 1


def test_steps_per_epoch():
    """``steps_per_epoch`` is the length of an epoch."""
    module = Weighted()
    fit(module, loader(), moving(steps_per_epoch=33))
    assert len(module.steps) == 33


def test_last_class_without_samples():
    """The last class may have a name and no samples."""
    data = Indexed((20, 10))
    data.classes = ["cat", "dog", "owl"]
    with pytest.raises(ValueError, match="No samples of class 2"):
        fit(Weighted(), loader(data), FairSampling())
    fit(Weighted(), loader(data), skipping := FairSampling(empty_classes="skip"))
    assert skipping.controller.q.tolist() == [0.5, 0.5, 0.0]


def test_loader_without_batch():
    """A loader without a whole batch is refused."""
    with pytest.raises(ValueError, match=r"no batch: .* fewer samples than batch_size=64, and drop_last=True"):
        fit(Weighted(), loader(Indexed((20, 10)), batch_size=64, drop_last=True), FairSampling())


def test_fair_loader_is_refused():
    """A loader that is fair already is refused."""
    theirs = FairDataModule(Indexed(), batch_size=8).train_dataloader()
    with pytest.raises(ValueError, match="fair already, with settings of its own"):
        fit(Weighted(), theirs, FairSampling())


def test_ignored_sampler_warns():
    """A sampler that loses its effect gives a warning."""
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * len(Indexed()), len(Indexed()))
    with pytest.warns(UserWarning, match="WeightedRandomSampler of the training DataLoader has no effect"):
        fit(Weighted(), DataLoader(Indexed(), batch_size=BATCH, sampler=weighted), moving())


@pytest.mark.parametrize(
    ("dataset", "settings", "label"),
    [
        (Subset(Indexed(), range(40)), {}, 0),  # sorted data
        (Labelled([2] * 160), {"num_classes": 4, "empty_classes": "skip"}, 2),
        (Indexed(), {"target_probs": [0.0, 1.0, 0.0, 0.0]}, 1),
        (Indexed((40, 0, 0, 0)), {"target_probs": [0.5, 0.5, 0.0, 0.0], "empty_classes": "skip"}, 0),
    ],
)
def test_single_class_warns_once(dataset, settings, label):
    """A run whose batches have one class only warns once, and names remedies that work."""
    data = loader(dataset)
    with warnings_about("nothing to balance") as warned:
        fit(Weighted(), data, FairSampling(**settings), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    (warning,) = warned
    assert f"of class {label} alone" in warning
    assert "FairSampling(labels=...)" in warning
    with warnings_about("nothing to balance") as warned:
        fit(Weighted(), data, FairSampling(labels=torch.arange(len(dataset)) % 2))
    assert not warned


def test_two_classes_do_not_warn():
    """No warning if the target moves from one class to another, or if there are two classes."""
    shift = schedules.Shift(schedules.Linear(0.0, 1.0, 10), [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    with warnings_about("nothing to balance") as warned:
        fit(Weighted(), loader(), FairSampling(target_probs=shift))
        fit(Weighted(), loader(Indexed((80, 80))), FairSampling())
    assert not warned


@pytest.mark.parametrize(
    ("stream", "settings", "expected"),
    [
        (lambda: FairStream([Indexed((40,))[i] for i in range(40)], batch_size=8), {"num_classes": 1}, 1),
        (lambda: FairStream([Indexed((40,))[i] for i in range(40)], FeedbackController(1), batch_size=8), {}, 1),
        (lambda: FairStream([Indexed((20, 20))[i] for i in range(40)], batch_size=8), {"num_classes": 2}, 0),
    ],
)
def test_stream_of_one_class_warns_once(stream, settings, expected):
    """A stream with one class warns, and names ``label_fn``."""
    with warnings_about("nothing to balance") as warned:
        fit(Weighted(), DataLoader(stream(), batch_size=8), FairSampling(**settings), max_epochs=2)
    assert len(warned) == expected
    assert all("FairStream(label_fn=...)" in warning for warning in warned)


def test_new_data_resets_statistics():
    """New data reset the statistics."""
    module, fair = Weighted(), moving()
    fitted = fit(module, loader(), fair)
    fitted.fit_loop.max_epochs = 2
    fitted.fit(module, loader(Indexed((40, 20, 10, 10))))
    assert fair.state_dict()["run_sums"][0] == 10 * BATCH


def test_scan_reads_data_once():
    """``labels="scan"`` reads the data once, however often the loader is reloaded."""

    class Counting(Indexed):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    data = Counting()
    fair = FairSampling(labels="scan")
    fit(Weighted(), loader(data), fair, max_epochs=2, limit_train_batches=1, reload_dataloaders_every_n_epochs=1)
    assert Counting.reads == len(data) + 2 * BATCH
