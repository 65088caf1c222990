"""A loader made fair: each batch has the record of its draw."""

import numpy as np
import pytest
import torch
from lightning_helpers import Indexed, loader
from loader_runs import TARGET, Images, as_dict, as_object, fair
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.dataloaders.checks import is_fair, num_prefetched
from lightning_fair.dataloaders.fair_loader import make_fair


@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_record_belongs_to_current_batch(workers):
    data = fair(num_workers=workers)
    for draw_id, (_, y, index) in enumerate(data):
        record = data.pending_batches[-1].draw
        assert record.draw_id == draw_id
        assert record.labels.tolist() == y.tolist() == Indexed().targets[index].tolist()
        assert data.pending_batches[-1].labels.tolist() == y.tolist()
        data.batch_sampler.report(record)
    assert draw_id == 5
    assert data.batch_sampler.controller.in_flight == ()


@pytest.mark.slow
def test_records_follow_p():
    data = fair(num_workers=2)
    seen = []
    for _ in data:
        seen.append(data.pending_batches[-1].draw.probs)
        data.batch_sampler.report(data.pending_batches[-1].draw)
    assert np.ptp(seen, axis=0).max() > 0.05


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_withdrawn_batches_come_first(workers):
    """After withdraw, the batches of an abandoned iteration are the first of the next one."""
    data = fair(num_workers=workers)
    data.on_start = data.batch_sampler.withdraw
    first = iter(data)
    for _ in range(2):
        next(first)
        data.batch_sampler.report(data.pending_batches[-1].draw)
    abandoned = next(first)  # delivered, but not trained on
    repeated = next(iter(data))
    assert repeated[2].tolist() == abandoned[2].tolist()
    assert data.pending_batches[-1].draw.draw_id == 2


def test_each_iteration_is_an_epoch():
    """Without a callback that reports, each iteration is an epoch."""
    data = fair()
    epochs = [[index for batch in data for index in batch[2].tolist()] for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert data.batch_sampler.controller.epoch == 2


def test_unused_iterator_draws_nothing():
    data = fair(num_workers=2)
    iter(data)
    iter(data)
    assert data.batch_sampler.controller.draws == 0


def test_length_is_that_of_the_sampler():
    data = fair(steps=7)
    assert len(data) == 7 == len(iter(data))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_workers": 2, "prefetch_factor": 3, "persistent_workers": True, "timeout": 5},
        {"collate_fn": list, "drop_last": True, "generator": torch.Generator()},
        {"worker_init_fn": print, "num_workers": 1, "multiprocessing_context": "fork"},
    ],
    ids=["plain", "workers", "collate", "fork"],
)
def test_copy_keeps_every_setting(settings):
    """The copy has all settings of the loader, and the loader itself does not change."""
    theirs = loader(**settings)
    before = dict(vars(theirs))
    mine = fair(theirs)
    of_fit = {"pending_batches", "on_start", "restart", "label_check", "rank_steps", "first_worker"}
    own = {*of_fit, "fair_sampler", "inner", "keeps_iterator"}
    for name, value in vars(theirs).items():
        assert value is before[name]
        assert name in ("batch_sampler", "_iterator") or vars(mine)[name] is value
    assert vars(mine).keys() - vars(theirs).keys() == own
    assert isinstance(mine, type(theirs))
    assert is_fair(mine)
    assert not is_fair(theirs)


class Own(DataLoader):
    """A subclass with its own arguments, attribute and iterator."""

    def __init__(self, size, /, *, scale):
        super().__init__(Indexed(), size, shuffle=True)
        self.scale = scale

    def __iter__(self):
        for x, y, index in super().__iter__():
            yield self.scale * x, y, index


def test_subclass_keeps_its_class():
    data = fair(Own(8, scale=100.0))
    assert isinstance(data, Own)
    for x, y, _ in data:
        assert x[:, 3].tolist() == [100.0] * 8
        assert data.pending_batches[-1].draw.labels.tolist() == y.tolist()


def as_nested(samples):
    x, y, index = default_collate(samples)
    return (x, {"y": y}), index


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("collate", "kind"),
    [(as_dict, dict), (as_object, Images), (as_nested, tuple), (list, list), (default_collate, list)],
)
def test_batch_keeps_its_structure(collate, kind, workers):
    """The batch is exactly what collate_fn returns."""
    data = fair(collate_fn=collate, num_workers=workers)
    plain = make_fair(loader(collate_fn=default_collate), FeedbackBatchSampler(Indexed(), 8))
    batch = next(iter(data))
    assert type(batch) is kind
    expected = collate([Indexed()[i] for i in samples_of(data.pending_batches[-1].draw, data)])
    assert flat(batch) == flat(expected)
    assert type(next(iter(plain))) is list


def samples_of(draw, data):
    sampler = FeedbackBatchSampler(Indexed(), 8, 6, FeedbackController(4, TARGET), seed=data.batch_sampler.seed)
    return next(iter(sampler))


def flat(batch):
    if isinstance(batch, torch.Tensor):
        return batch.tolist()
    if isinstance(batch, dict):
        return {key: flat(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [flat(value) for value in batch]
    return flat(vars(batch)) if isinstance(batch, Images) else batch


def sometimes_none(samples):
    return None if samples[0][2] % 2 else default_collate(samples)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_none_batch_has_no_labels(workers):
    data = fair(collate_fn=sometimes_none, num_workers=workers, steps=20)
    sampler = data.batch_sampler
    kinds = set()
    for batch in data:
        kinds.add(type(batch))
        delivered = data.pop_pending()
        assert not data.pending_batches
        if batch is None:
            assert delivered.labels.tolist() == []
        else:
            assert delivered.draw.labels.tolist() == delivered.labels.tolist() == batch[1].tolist()
        sampler.report(delivered.draw)
    assert kinds == {type(None), list}
    assert sampler.controller.in_flight == ()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0),
        pytest.param({"num_workers": 2}, 4, marks=pytest.mark.slow),
        pytest.param({"num_workers": 3, "prefetch_factor": 5}, 15, marks=pytest.mark.slow),
    ],
)
def test_num_prefetched_is_draws_ahead(settings, expected):
    data = fair(steps=20, **settings)
    assert num_prefetched(data) == expected
    next(iter(data))
    assert data.batch_sampler.controller.draws == expected + 1


class SkipsBatches(DataLoader):
    """An iterator that drops every other batch."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number % 2:
                yield batch


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_dropped_batches_are_noticed(workers):
    """The records would belong to other batches, so an error is better than wrong weights."""
    data = fair(SkipsBatches(Indexed(), 8, shuffle=True, num_workers=workers), steps=30)
    try:
        wrong = sum(data.pending_batches[-1].draw.labels.tolist() != y.tolist() for _, y, _ in data)
    except RuntimeError as error:
        assert "SkipsBatches" in str(error)  # noqa: PT017  an error is as good as right weights
        return
    assert wrong == 0


class FetchesAhead(DataLoader):
    """An iterator that holds one batch back, as iterators do that copy to a device in advance."""

    def __iter__(self):
        batches = super().__iter__()
        held = next(batches)
        for batch in batches:
            yield held
            held = batch
        yield held


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loader_may_fetch_ahead(workers):
    data = fair(FetchesAhead(Indexed(), 8, shuffle=True, num_workers=workers), steps=10)
    assert [data.pending_batches[-1].draw.labels.tolist() == y.tolist() for _, y, _ in data] == [True] * 10


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_all_batches_drawn_ahead_are_remembered(workers, monkeypatch):
    """However far the loader is ahead, each batch has its own draw; a loop without the callback keeps only some."""
    monkeypatch.setattr("lightning_fair.control.draw.max_remembered", lambda num_classes: 3)
    monkeypatch.setattr("lightning_fair.dataloaders.fair_loader.max_remembered", lambda num_classes: 3)
    ahead = {"num_workers": workers, "prefetch_factor": 20} if workers else {}
    data = fair(DataLoader(Indexed(), 8, **ahead), steps=60)
    for draw_id, (_, y, index) in enumerate(data):
        draw = data.pending_batches[-1].draw
        assert (draw.draw_id, draw.labels.tolist()) == (draw_id, y.tolist())
        assert sorted(index.tolist()) == sorted(draw.indices)
        assert len(data.batch_sampler.controller.in_flight) == min(40 * bool(workers) + 1, 60 - draw_id)
        assert data.batch_sampler.controller.get_probs().tolist() == draw.probs.tolist()
        data.batch_sampler.controller.step_update(y)
    assert len(data.pending_batches) == 3


def labeled(N=64):
    return TensorDataset(torch.arange(float(N)), torch.arange(N) % 4)


def test_labels_are_copied_from_tensors():
    """For workers that are not forked torch moves the tensors of the data set, and a view of the old memory dangles."""
    dataset = labeled()
    sampler = FeedbackBatchSampler(dataset, 8)
    assert not np.shares_memory(sampler.labels, dataset.tensors[1].numpy())
    dataset.tensors[1].share_memory_().zero_()
    assert sampler.labels.tolist() == [label % 4 for label in range(64)]


@pytest.mark.slow
def test_labels_with_spawned_workers():
    dataset = labeled()
    data = make_fair(
        DataLoader(dataset, 8, num_workers=1, multiprocessing_context="spawn"), FeedbackBatchSampler(dataset, 8, 4)
    )
    for _, y in data:
        assert data.pending_batches[-1].draw.labels.tolist() == y.tolist()
