from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning_helpers import Indexed, in_any_order, loader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.dataloaders.checks import batch_size, check_loader, is_fair, num_prefetched
from lightning_fair.dataloaders.fair_loader import make_fair

TARGET = [0.4, 0.3, 0.2, 0.1]


def fair(data=None, steps=6, **settings):
    data = data or loader(**settings)
    sampler = FeedbackBatchSampler(
        Indexed(), data.batch_size, steps, FeedbackController(4, TARGET), seed=int(settings.get("num_workers", 0))
    )
    return make_fair(data, sampler)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_record_is_that_of_the_batch_at_hand(workers):
    data = fair(num_workers=workers)
    for draw_id, (_, y, index) in enumerate(data):
        record = data.pending_batches[-1].draw
        assert record.draw_id == draw_id
        assert record.labels.tolist() == y.tolist() == Indexed().targets[index].tolist()
        assert data.pending_batches[-1].labels.tolist() == y.tolist()
        data.batch_sampler.report(record)
    assert draw_id == 5
    assert data.batch_sampler.controller.in_flight == ()


def test_records_move_with_p():
    data = fair(num_workers=2)
    seen = []
    for _ in data:
        seen.append(data.pending_batches[-1].draw.probs)
        data.batch_sampler.report(data.pending_batches[-1].draw)
    assert np.ptp(seen, axis=0).max() > 0.05


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_an_abandoned_iteration_come_first_in_the_next_one(workers):
    data = fair(num_workers=workers)
    data.on_start = data.batch_sampler.withdraw
    first = iter(data)
    for _ in range(2):
        next(first)
        data.batch_sampler.report(data.pending_batches[-1].draw)
    abandoned = next(first)  # delivered, but not trained on
    again = next(iter(data))
    assert again[2].tolist() == abandoned[2].tolist()
    assert data.pending_batches[-1].draw.draw_id == 2


def test_every_iteration_is_an_epoch_of_its_own_where_no_callback_reports():
    data = fair()
    epochs = [[index for batch in data for index in batch[2].tolist()] for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert data.batch_sampler.controller.epoch == 2


def test_labels_of_the_callbacks_own_are_never_looked_for_in_the_batch():
    """Two other columns that could pass for labels: what is drawn by a third stays with the draw."""
    rng = np.random.default_rng(0)
    y, z = (torch.from_numpy(rng.integers(0, 2, 200)) for _ in range(2))
    data = make_fair(
        DataLoader(TensorDataset(torch.zeros(200), z, y)),
        FeedbackBatchSampler(y, 4, steps_per_epoch=50),
        guess_labels=False,
    )
    for _, _, wanted in data:
        assert data.pending_batches[-1].labels.tolist() == wanted.tolist()


def test_column_in_the_order_of_the_draw_wins_over_the_usual_place():
    rng = np.random.default_rng(0)
    y, z = (torch.from_numpy(rng.integers(0, 2, 200)) for _ in range(2))
    data = make_fair(DataLoader(TensorDataset(torch.zeros(200), z, y)), FeedbackBatchSampler(y, 4, steps_per_epoch=50))
    for _, _, wanted in data:
        assert data.pending_batches[-1].labels.tolist() == wanted.tolist()


def test_iterator_that_is_never_used_draws_nothing():
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
def test_fair_loader_keeps_every_setting_and_leaves_the_users_one_alone(settings):
    theirs = loader(**settings)
    before = dict(vars(theirs))
    mine = fair(theirs)
    changed = {"batch_sampler", "pending_batches", "on_start", "restart", "guess_labels", "_iterator"}
    for name, value in vars(theirs).items():
        assert value is before[name]
        assert name in changed or vars(mine)[name] is value
    assert vars(mine).keys() - vars(theirs).keys() == {"pending_batches", "on_start", "restart", "guess_labels"}
    assert isinstance(mine, type(theirs))
    assert is_fair(mine)
    assert not is_fair(theirs)


class Own(DataLoader):
    """A subclass with other arguments, an attribute, and an iterator of its own."""

    def __init__(self, size, /, *, scale):
        super().__init__(Indexed(), size, shuffle=True)
        self.scale = scale

    def __iter__(self):
        for x, y, index in super().__iter__():
            yield self.scale * x, y, index


def test_subclass_with_a_constructor_of_its_own_stays_what_it_is():
    data = fair(Own(8, scale=100.0))
    assert isinstance(data, Own)
    for x, y, _ in data:
        assert x[:, 3].tolist() == [100.0] * 8
        assert data.pending_batches[-1].draw.labels.tolist() == y.tolist()


# -- the batch keeps its structure --------------------------------------------------------------------------------


@dataclass
class Images:
    pixels: torch.Tensor
    classes: torch.Tensor


def as_dict(samples):
    x, y, index = default_collate(samples)
    return {"image": x, "label": y, "index": index}


def as_object(samples):
    x, y, _ = default_collate(samples)
    return Images(x, y)


def as_nested(samples):
    x, y, index = default_collate(samples)
    return (x, {"y": y}), index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("collate", "kind"),
    [(as_dict, dict), (as_object, Images), (as_nested, tuple), (list, list), (default_collate, list)],
)
def test_batch_is_what_collate_fn_makes_of_it(collate, kind, workers):
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


# -- the labels of the batch --------------------------------------------------------------------------------------


def backwards(samples):
    return default_collate(samples[::-1])


def fewer(samples):
    return default_collate(samples[:3])


def fewer_backwards_by_name(samples):
    return as_dict(samples[:-6:-1])


@pytest.mark.parametrize("collate", [default_collate, backwards, fewer, as_dict, fewer_backwards_by_name])
@pytest.mark.parametrize("key", ["label", "labels", "target", "targets", "y"])
def test_labels_are_the_batches_own_where_they_can_be_told(collate, key):
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


def soft_labels(samples):
    x, y, _ = default_collate(samples)
    return x, torch.nn.functional.one_hot(y, 4).float()


def rough_numbers(samples):
    x, y, _ = default_collate(samples)
    return x, y.float()


@pytest.mark.parametrize(
    "collate",
    [only_images, other_numbers_second, numbers_out_of_range_second, soft_labels, rough_numbers, as_object, list],
)
def test_labels_are_those_that_were_drawn_where_the_batch_does_not_tell(collate):
    data = fair(collate_fn=collate)
    for _ in data:
        assert data.pending_batches[-1].labels.dtype == torch.int64
        assert data.pending_batches[-1].labels.tolist() == data.pending_batches[-1].draw.labels.tolist()


def sometimes_none(samples):
    return None if samples[0][2] % 2 else default_collate(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_batch_that_is_none_has_no_labels(workers):
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


# -- what cannot be made fair -------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(10)


class SizelessBatches:
    def __iter__(self):
        yield [0, 1]

    def __len__(self):
        return 1


class OwnOrder(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


@pytest.mark.parametrize(
    ("data", "error", "match"),
    [
        ([1, 2], TypeError, "got list"),
        (DataLoader(Stream()), TypeError, "Stream is a stream"),
        (DataLoader(Indexed(), batch_size=None), ValueError, "batch_size=None"),
        (DataLoader(Indexed(), batch_sampler=SizelessBatches()), ValueError, "SizelessBatches has no attribute"),
    ],
)
def test_loader_that_cannot_be_made_fair_is_refused(data, error, match):
    with pytest.raises(error, match=match):
        check_loader(data)
    with pytest.raises(error, match=match):
        make_fair(data, FeedbackBatchSampler(Indexed(), 8))


@in_any_order
def test_loader_with_an_iterator_and_an_order_of_its_own_is_refused():
    with pytest.raises(ValueError, match="in_order=True"):
        check_loader(OwnOrder(Indexed(), batch_size=8, num_workers=2, in_order=False))


@in_any_order
def test_order_does_not_matter_without_workers():
    check_loader(loader(in_order=False))


def test_batch_size_is_the_loaders_or_its_batch_samplers():
    dataset = TensorDataset(torch.zeros(10))
    batches = torch.utils.data.BatchSampler(range(10), batch_size=5, drop_last=False)
    assert batch_size(DataLoader(dataset, batch_size=3)) == 3
    assert batch_size(DataLoader(dataset, batch_sampler=batches)) == 5


@pytest.mark.parametrize(
    ("settings", "expected"), [({}, 0), ({"num_workers": 2}, 4), ({"num_workers": 3, "prefetch_factor": 5}, 15)]
)
def test_lead_is_what_the_workers_fetch_ahead(settings, expected):
    data = fair(steps=20, **settings)
    assert num_prefetched(data) == expected
    next(iter(data))
    assert data.batch_sampler.controller.draws == expected + 1


class SkipsBatches(DataLoader):
    """An iterator that swallows every other batch."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number % 2:
                yield batch


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_that_swallows_batches_is_noticed(workers):
    """Its records would belong to other batches: an error is better than wrong weights for a whole run."""
    data = fair(SkipsBatches(Indexed(), 8, shuffle=True, num_workers=workers), steps=30)
    try:
        wrong = sum(data.pending_batches[-1].draw.labels.tolist() != y.tolist() for _, y, _ in data)
    except RuntimeError as error:
        assert "SkipsBatches" in str(error)  # noqa: PT017  it need not work, if it says so
        return
    assert wrong == 0


class FetchesAhead(DataLoader):
    """An iterator that holds one batch back, as those that copy to a device ahead of time do."""

    def __iter__(self):
        batches = super().__iter__()
        held = next(batches)
        for batch in batches:
            yield held
            held = batch
        yield held


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_that_fetches_ahead_by_itself_is_fine(workers):
    data = fair(FetchesAhead(Indexed(), 8, shuffle=True, num_workers=workers), steps=10)
    assert [data.pending_batches[-1].draw.labels.tolist() == y.tolist() for _, y, _ in data] == [True] * 10


# -- labels in shared memory ---------------------------------------------------------------------------------------


def labelled(N=64):
    return TensorDataset(torch.arange(float(N)), torch.arange(N) % 4)


def test_labels_outlive_a_tensor_that_moves_to_shared_memory():
    """Workers that are not forked make torch move the data set's tensors; an array over the old place dangles."""
    dataset = labelled()
    sampler = FeedbackBatchSampler(dataset, 8)
    assert not np.shares_memory(sampler.labels, dataset.tensors[1].numpy())
    dataset.tensors[1].share_memory_().zero_()
    assert sampler.labels.tolist() == [label % 4 for label in range(64)]


def test_labels_are_right_with_spawned_workers():
    dataset = labelled()
    data = make_fair(
        DataLoader(dataset, 8, num_workers=1, multiprocessing_context="spawn"), FeedbackBatchSampler(dataset, 8, 4)
    )
    for _, y in data:
        assert data.pending_batches[-1].draw.labels.tolist() == y.tolist()
