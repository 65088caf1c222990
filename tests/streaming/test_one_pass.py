"""A source that gives every worker, or every rank, the same samples is noticed."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import stream_runs
import torch
from lightning_helpers import Weighted, fit, warnings_about
from stream_runs import in_turns
from torch.utils.data import DataLoader, IterableDataset

import lightning_fair.dataloaders.stream_tracker as tracker_module
from lightning_fair import FairSampling, FairStream, FeedbackController
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.streaming.one_pass import checksum, own_checksums

SAME = "read the same samples"


class Unsharded(IterableDataset):
    """Gives each worker all samples."""

    def __init__(self, size=400, kinds=10_000):
        self.size, self.kinds = size, kinds

    def samples(self):
        for i in range(self.size):
            yield torch.tensor([i % self.kinds, 0.0, 0.0, 1.0]), i % self.kinds % 2, i % self.kinds

    def __iter__(self):
        return self.samples()


class Sharded(Unsharded):
    """The remedy that the warning names."""

    def __iter__(self):
        info = stream_runs.get_worker_info()
        return islice(self.samples(), info.id, None, info.num_workers)


class Reordered(Unsharded):
    """Each worker has an order of its own."""

    def __init__(self, size, *, disjoint):
        super().__init__(size)
        self.disjoint = disjoint

    def __iter__(self):
        info, samples = stream_runs.get_worker_info(), list(self.samples())
        mine = samples[info.id :: info.num_workers] if self.disjoint else samples
        return (mine[i] for i in np.random.default_rng(info.id).permutation(len(mine)))


def made(source, **settings):
    return FairStream(source, FeedbackController(2), **{"batch_size": 8, "buffer_size": 16, **settings})


@pytest.mark.parametrize("source", [Unsharded(), Unsharded(20), Reordered(80, disjoint=False)])
def test_same_samples_are_noticed_once(source):
    """One warning in all iterations, in the first batches."""
    stream = made(source)
    with warnings_about(SAME) as messages:
        for _ in range(2):
            for _ in islice(in_turns(stream, 3, samples=True), 8):
                pass
    (message,) = messages
    assert message.startswith("Workers ")
    assert "get_worker_info()" in message


@pytest.mark.parametrize(
    "source",
    [
        Sharded(),
        Reordered(400, disjoint=True),
        Unsharded(400, kinds=1),  # equal by nature
        Unsharded(400, kinds=20),
        Unsharded(10),  # too few to tell
        [(i, i % 2) for i in range(400)],  # which FairStream deals out
    ],
)
def test_no_false_alarm(source):
    with warnings_about(SAME) as messages:
        for _ in in_turns(made(source), 3, samples=True):
            pass
    assert messages == []


class Exchanged(Unsharded):
    """In each iteration the workers exchange their shards."""

    def __init__(self):
        super().__init__()
        self.iterations = Counter()

    def __iter__(self):
        info = stream_runs.get_worker_info()
        self.iterations[info.id] += 1
        return islice(self.samples(), (info.id + self.iterations[info.id]) % 2, None, 2)


def test_iterations_are_told_apart():
    """A worker may read what another one has read in the last iteration; persistent workers keep their seed."""
    stream = made(Exchanged(), buffer_size=64)  # worker 0 is compared before worker 1 begins
    with warnings_about(SAME) as messages:
        for _ in range(3):
            assert len(list(in_turns(stream, 2, samples=True))) > 15
    assert messages == []


@pytest.mark.slow
@pytest.mark.parametrize("source", [Unsharded(), Sharded()])
def test_warning_under_lightning(source):
    """The workers find it, and the main process says it, once in two epochs; with the remedy it is silent."""
    loader = DataLoader(FairStream(source, batch_size=8), batch_size=8, num_workers=2)
    with warnings_about(SAME) as messages:
        fit(Weighted(), loader, FairSampling(num_classes=2), max_epochs=2)
    assert len(messages) == (type(source) is Unsharded)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_with_the_same_samples(shared, monkeypatch):
    """Rank 0 warns at the first report; each rank takes part once, whatever it has read."""
    calls = []

    def gather(value):
        rank, sums = value
        calls.append(sums)
        # The first two processes have the same share of the samples.
        return [value, value, (1 - rank, sums if shared else [number + 1 for number in sums])]

    monkeypatch.setattr(tracker_module, "gather_from_ranks", gather)
    with warnings_about(SAME) as messages:
        for rank in range(2):
            tracker = StreamTracker(made(Unsharded(80)), rank, 2)
            for draw, _ in tracker.stream.batches():
                tracker.report(draw)
    assert [len(value) for value in calls] == [24, 24]
    assert len(messages) == shared
    assert not shared or messages[0].startswith("Ranks 0 and 1 read the same samples: 24 of the first 24")


def test_sample_is_known_by_its_values():
    block = torch.arange(12.0).reshape(3, 4)
    image = pytest.importorskip("PIL.Image").fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    same = [
        (block[1], block[1].clone()),
        (block[:, 1], block[:, 1].contiguous()),
        ({"x": [1, "a", None], "y": np.float32(3)}, {"x": (1, "a", None), "y": np.float32(3)}),
        (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)),
        (image, image.copy()),
        (torch.tensor(1), torch.tensor(1)),
        (b"ab", b"ab"),
    ]
    sums = [(checksum((one, 0)), checksum((other, 0)), checksum((one, 1))) for one, other in same]
    assert all(one == other != third for one, other, third in sums)
    assert len({one for one, _, _ in sums}) == len(sums)


def test_only_the_first_samples_are_hashed(monkeypatch):
    from lightning_fair.streaming import one_pass

    calls = []
    monkeypatch.setattr(one_pass, "checksum", lambda sample: calls.append(sample) or len(calls))
    stream = made(Unsharded())
    for _ in in_turns(stream, 2):
        pass
    assert len(calls) == 2 * 64
    assert len(own_checksums(stream.first_samples)) == 64
