"""The shard of a worker, and its position."""

import pytest
from stream_resume_runs import SIZE, Counting, piped

from lightning_fair.streaming.sources import Shard, SourceReader

SHARDS = [Shard(worker, 2, rank, 3) for worker in range(2) for rank in range(3)]


class Iterator:
    """An iterator with a state of its own; its iterable has none."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        raise AssertionError("made twice")

    def __next__(self):
        self.number += 1
        if self.number > SIZE:
            raise StopIteration
        return self.number - 1

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


class OfIterator:
    def __iter__(self):
        return Iterator()


@pytest.mark.parametrize("make", [lambda: range(SIZE), OfIterator], ids=["sequence", "iterator with a state"])
@pytest.mark.parametrize("number", [0, 1, 5, 100])
def test_shards_of_an_iterable_continue(make, number):
    """Together they have each sample once, also if each continues after some of its samples."""
    items = []
    for shard in SHARDS:
        first = SourceReader(make(), shard)
        items += first.read(number)
        items += SourceReader(make(), shard, state=first.state_dict()).read(SIZE)
    assert sorted(items) == list(range(SIZE))


def test_data_pipes_have_their_shards(tmp_path):
    """The order is that of the epoch, the same in all shards."""
    readers = [SourceReader(piped(tmp_path), shard, epoch=2, seed=7) for shard in SHARDS]
    assert readers[0].state_dict() is None
    items = [[item for *_, item in reader.read(SIZE)] for reader in readers]
    assert sorted(item for part in items for item in part) == list(range(SIZE))
    other = SourceReader(piped(tmp_path), SHARDS[0], epoch=3, seed=7)
    assert [item for *_, item in other.read(SIZE)] != items[0]


def test_epoch_is_set_before_the_state():
    source = Counting()
    reader = SourceReader(source, Shard(), epoch=4)
    items = [item for *_, item in reader.read(SIZE)]
    state = {"num_read": 3, "order": None, "states": [{"position": 3}]}
    assert [item for *_, item in SourceReader(Counting(), Shard(), epoch=4, state=state).read(SIZE)] == items[3:]


class Refusing(OfIterator):
    """A source that cannot read on from its own state."""

    state = None

    def __iter__(self):
        if self.state is not None:
            raise IndexError("list index out of range")
        return iter(range(SIZE))

    def state_dict(self):
        return {"number": 1}

    def load_state_dict(self, state):
        self.state = state


class LateRefusing(Refusing):
    def __iter__(self):
        yield from super().__iter__()


@pytest.mark.parametrize("make", [Refusing, LateRefusing])
def test_source_that_cannot_continue(make):
    reader = SourceReader(make(), Shard())
    reader.read(1)
    with pytest.raises(RuntimeError, match=r'IndexError: list index out of range. FairSampling\(resume="restart"\)'):
        SourceReader(make(), Shard(), state=reader.state_dict()).read(1)


def test_list_is_not_read_up_to_the_position():
    class Counted(list):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    loaded = []
    SourceReader(Counted(range(8)), Shard(1, 2), state={"num_read": 2, "order": None, "states": []}).read(1)
    assert loaded == [5]


def test_other_order_of_a_shuffle_buffer_is_an_error():
    """An unseeded shuffle has another order in each process."""
    rows = pytest.importorskip("datasets").Dataset.from_dict({"label": list(range(SIZE))}).to_iterable_dataset()
    reader = SourceReader(rows.shuffle(buffer_size=5), Shard())
    first = reader.read(3)
    with pytest.raises(RuntimeError, match=r"shuffles in another order; give it a seed, as in shuffle\(seed=0\)"):
        SourceReader(rows.shuffle(buffer_size=5), Shard(), state=reader.state_dict())
    seeded = rows.shuffle(seed=0, buffer_size=5)
    reader = SourceReader(seeded, Shard())
    first = reader.read(3)
    rest = SourceReader(seeded.map(dict), Shard(), state=reader.state_dict()).read(SIZE)
    assert sorted(row["label"] for row in first + rest) == list(range(SIZE))
