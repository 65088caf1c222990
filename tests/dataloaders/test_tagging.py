"""Tags that travel with a batch through the workers."""

import pickle

import pytest
from lightning_helpers import Indexed, in_any_order, loader
from loader_runs import fair
from stream_runs import long_tail, stream
from torch.utils.data import DataLoader

from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.tagging import Tagged, tagged_batches


def unordered():
    return fair(loader(num_workers=1, in_order=False))


def streamed():
    return make_stream_fair(DataLoader(stream(long_tail(80)), batch_size=8))


def ordered():
    return fair()


@pytest.mark.parametrize("make", [ordered, pytest.param(unordered, marks=in_any_order), streamed])
def test_loader_shows_its_own_settings_again(make):
    data = make()
    before = dict(vars(data))
    with tagged_batches(data):
        assert (vars(data) == before) is (make is ordered)
    assert vars(data) == before


@in_any_order
def test_map_style_samples_carry_the_draw_id():
    data = unordered()
    with tagged_batches(data):
        (batch, *_), dataset, collate = list(data.batch_sampler), data.dataset, data.collate_fn
    *_, index = collate(dataset.__getitems__(batch)).content
    assert batch.tag == 0
    assert index.tolist() == batch.content
    assert len(dataset) == len(Indexed())


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 4]), (True, [8])])
def test_stream_batches_carry_their_draw(drop_last, sizes):
    data = make_stream_fair(DataLoader(stream([0, 1] * 6, buffer_size=8), batch_size=8, drop_last=drop_last))
    with tagged_batches(data):
        items = list(data.dataset)
    assert [len(item.content) for item in items] == sizes
    assert all(item.tag.labels.tolist() == [y for _, y in item.content] for item in items)
    assert isinstance(items[0], Tagged)


@pytest.mark.parametrize("make", [pytest.param(unordered, marks=in_any_order), streamed])
def test_tagged_dataset_forwards_attributes(make):
    """A ``worker_init_fn`` reads and sets attributes of the user's data set, after pickling too."""
    data = make()
    with tagged_batches(data):
        proxy = data.dataset
    proxy.mark = 3
    assert data.dataset.mark == 3
    copy = pickle.loads(pickle.dumps(proxy))
    assert copy.mark == 3
    assert type(copy) is type(proxy)
