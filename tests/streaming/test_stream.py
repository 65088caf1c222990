"""A stream made fair: the laws of its batches, the bounds of its buffers, sources and workers."""

import pickle
from collections import Counter
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from stream_runs import TARGET, held_samples, interrupted, long_tail, mixed, stream, turning
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_fair import FairStream, FeedbackController, importance_weights, schedules
from lightning_fair.control.weights import class_weights, clipped_mass
from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker


def label_of(item):
    return item % 4


class CountedReads:
    """An iterable that counts the samples read from it."""

    def __init__(self, labels):
        self.labels, self.read = list(labels), 0

    def __iter__(self):
        for item in enumerate(self.labels):
            self.read += 1
            yield item


def test_counts_are_floor_or_ceiling():
    """Each count is the floor or the ceiling of batch size times the recorded p."""
    controller = FeedbackController(4, TARGET)
    moved = []
    for draw, samples in stream(long_tail(2000), controller, buffer_size=16, max_reuse=6).batches():
        expected = draw.probs * len(samples)
        assert (np.floor(expected + 1e-9) <= draw.counts + 1e-9).all()
        assert (draw.counts <= np.ceil(expected - 1e-9)).all()
        assert draw.probs.sum() == pytest.approx(1.0)
        assert [y for _, y in samples] == draw.labels.tolist()
        assert np.bincount(draw.labels, minlength=4).tolist() == draw.counts.tolist()
        moved.append(draw.probs)
    assert np.ptp(moved, axis=0).min() > 0.05  # a constant p would test nothing


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_weighted_mean_is_unbiased(workers):
    """Each class has the same f, so E[mean(w f)] = sum(q f), batch by batch, whatever p is.

    The rounding of the counts of 8 samples makes the deviation of one batch's mean at most that of a sample's
    w f, below 1.5 here, and that of the mean over 500 independent batches at most 0.07.
    """
    f = np.array([1.0, -2.0, 0.5, 3.0])
    source = stream(
        long_tail(4000, (0.4, 0.3, 0.2, 0.1)), FeedbackController(4, TARGET), return_weights=True, buffer_size=64
    )
    means, probs = [], []
    for _, y, w in DataLoader(source, batch_size=8, num_workers=workers):
        means.append(float((w.double().numpy() * f[y.numpy()]).mean()))
        probs.append(w.max().item())
    assert np.mean(means) == pytest.approx(np.dot(TARGET, f), abs=0.07)
    assert np.ptp(probs) > 0.1
    assert len(means) == 500


def test_probs_are_those_of_current_batch():
    """Without workers, get_probs() returns the p of the current batch."""
    controller = FeedbackController(4, TARGET)
    source = stream(long_tail(800), controller, return_weights=True)
    for _, y, w in DataLoader(source, batch_size=8):
        assert torch.allclose(w, importance_weights(y, controller.get_reference(), controller.get_probs()))
        source.step_update(y)
    assert controller.draws == 100
    assert controller.in_flight == ()


def test_99_to_1_stream_is_balanced_early():
    """After 16 batches the trained mix of a 99:1 stream is within 2 % of the target."""
    controller = FeedbackController(2)
    off = []
    for draw, _ in stream(turning(1, 12_800), controller, batch_size=64).batches(in_flight=True):
        off.append(abs(controller.trained_mix[1] - 0.5))
        controller.report(draw.counts, draw=draw)
    assert max(off[16:]) < 0.02


def test_trained_mix_recovers_after_each_turn():
    """Each time the stream turns from 99:1 to 1:99, the trained mix is within 2 % again after 16 batches."""
    size = 6400
    controller = FeedbackController(2)
    source = stream(turning(5, size), controller, batch_size=64)
    off = []
    for draw, _ in source.batches(in_flight=True):
        controller.report(draw.counts, draw=draw)
        off.append(abs(controller.trained_mix[1] - 0.5))
    per_turn = size // 64
    for turn in range(5):
        assert max(off[turn * per_turn + 16 : (turn + 1) * per_turn]) < 0.02


def turn_of(size, **settings):
    """Return distance from the target, largest weight and clipped mass of each batch, in the turns of a 99:1 stream.

    Without repeats the rare class runs short, so the trained mix is far from the target when the stream turns.
    """
    source = stream(turning(2, size), FeedbackController(2), batch_size=32, **settings)
    distance, weights, mass, read, turn = [], [], [], 0, None
    for number, (draw, samples) in enumerate(source.batches()):
        read += draw.arrived.sum()
        turn = number if turn is None and read > size else turn
        distance.append(abs(draw.trained_mix[1] - 0.5))
        own = class_weights(draw.weight_reference, draw.probs)
        weights.append(own.max())
        mass.append(clipped_mass(draw.weight_reference, draw.probs, 10.0))
        if settings.get("return_weights"):
            assert [float(w) for *_, w in samples] == pytest.approx(np.minimum(own, 10.0)[draw.labels], rel=1e-6)
    return turn, *map(np.array, (distance, weights, mass))


def test_turn_is_recovered_with_bounded_weights():
    """At a turn, with all classes at hand, the mix is back after at most 15 batches, and no weight is clipped."""
    turn, distance, weights, mass = turn_of(8096, buffer_size=4096, max_reuse=1)
    assert distance[turn] > 0.3
    assert 5 <= np.flatnonzero(distance[turn : turn + 100] > 0.02)[-1] + 1 <= 15
    assert 9.0 < weights[turn : turn + 100].max() <= 10.0 + 1e-9
    assert not mass[turn : turn + 100].any()


@pytest.mark.parametrize("settings", [{"max_reuse": 1}, {"max_reuse": 16}], ids=str)
def test_clipped_mass_where_classes_run_short(settings):
    """With small buffers no draw can keep the bound: the samples' weights are clipped, and the lost part is known."""
    turn, _, weights, mass = turn_of(2048, buffer_size=32, return_weights=True, **settings)
    assert turn
    assert mass.max() == pytest.approx(0.5)  # where a class is missing, its whole share
    assert (mass > 0).mean() > 0.2
    if settings["max_reuse"] == 1:
        short = weights > 10.0 + 1e-9
        assert short.mean() > 0.1
        assert (mass[short] > 0.1).all()


@pytest.mark.parametrize("reads", [1, 3])
def test_reads_are_bounded(reads):
    """Reads are proportional to the samples handed out, and an epoch has the length of the source."""
    source = CountedReads(long_tail(3000))
    fair = FairStream(source, FeedbackController(4), batch_size=16, buffer_size=64, reads_per_sample=reads)
    handed = 0
    for _, samples in fair.batches():
        handed += len(samples)
        assert source.read <= (handed + 16) * reads + 64
    assert source.read == 3000
    assert handed == 3000 // reads
    assert len(FairStream([0] * 3000, batch_size=8, reads_per_sample=reads)) == 3000 // reads


@pytest.mark.parametrize("reuse", [1, 2, 5])
def test_max_reuse_bounds_uses_of_a_sample(reuse):
    uses = Counter(item for item, _ in stream(long_tail(2000), max_reuse=reuse, buffer_size=32))
    assert max(uses.values()) == reuse
    assert sum(uses.values()) <= 2000


def test_samples_of_frequent_classes_are_used_once():
    labels = long_tail(2000, (0.5, 0.5))
    uses = Counter(item for item, _ in stream(labels, buffer_size=64))
    assert np.mean([uses[item] == 1 for item in range(2000)]) > 0.95


@pytest.mark.parametrize("batch", [8, 128])
def test_samples_are_not_evicted_unused(batch):
    """Almost all samples are used if the classes arrive in the target mix."""
    labels = long_tail(20_000, (0.5, 0.5))
    used = {item for item, _ in stream(labels, batch_size=batch, buffer_size=256)}
    assert len(used) > 0.95 * len(labels)


def test_reads_are_even():
    """After the buffers were filled, each batch reads as many samples as it hands out."""
    source = CountedReads(long_tail(800))
    fair = FairStream(source, FeedbackController(4), batch_size=8, buffer_size=32)
    read = [source.read for _ in fair.batches()]
    assert read[0] == 32 + 8
    assert set(np.diff(read[:-5])) == {8}


def test_buffers_keep_no_block_alive():
    """The buffers reach their limit, and samples that are slices of a block own their memory."""

    def blocks():
        for start in range(0, 4096, 512):  # each sample is a slice of a block
            images = torch.zeros(512, 28, 28)
            for i in range(512):
                yield images[i], (start + i) % 7 % 4

    source = FairStream(blocks(), FeedbackController(4), batch_size=32, buffer_size=50)
    for _ in source.batches():
        pass
    held = [held_samples(source._iteration.buffers, y) for y in range(4)]
    assert max(map(len, held)) == 50  # the limit was reached
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for samples in held for x, _ in samples}
    assert sum(storages.values()) <= 1.1 * 4 * 50 * 28 * 28 * 4


def test_pickled_stream_has_empty_buffers():
    fair = stream(long_tail(80))
    list(fair)
    assert fair._iteration is not None
    assert pickle.loads(pickle.dumps(fair))._iteration is None


def test_class_without_target_is_not_held():
    source = stream(long_tail(800), FeedbackController(4, [0.5, 0.5, 0.0, 0.0]))
    assert {y for _, y in source} == {0, 1}
    assert held_samples(source._iteration.buffers, 2) == held_samples(source._iteration.buffers, 3) == []


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_iteration_begins_with_empty_buffers(workers):
    """Also with workers that stay, the second iteration hands nothing out that the first one has read."""
    source = stream([0] * 100 + [1] * 100, buffer_size=16)
    loader = DataLoader(source, batch_size=8, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        assert next(iter(loader))[1].tolist() == [0] * 8
        assert len(list(loader)) == 25


def test_missing_class_goes_to_others():
    """While a class is missing, the stream goes on, and the others get its share in proportion."""
    target = np.array([0.1, 0.5, 0.4])
    draws = [
        draw for draw, _ in stream(interrupted(), FeedbackController(3, target), max_reuse=2, buffer_size=16).batches()
    ]
    missing = [draw for draw in draws if draw.probs[1] == 0][:60]
    assert missing[-1].draw_id - missing[0].draw_id < 70
    drawn = np.sum([draw.counts for draw in missing], axis=0)
    assert drawn[[0, 2]] / drawn.sum() == pytest.approx(
        [0.2, 0.8], abs=0.04
    )  # 0.35 and 0.65 if both got half of class 1's share
    assert sum(draw.counts.sum() for draw in draws) == 2400


def test_catch_up_is_bounded_by_horizon():
    """When a class is back, it gets at most the quota of one horizon in addition."""
    controller = FeedbackController(3, [0.2, 0.5, 0.3])
    draws = [draw for draw, _ in stream(interrupted(), controller, max_reuse=4, buffer_size=64).batches()]
    back = next(i for i in range(150, len(draws)) if draws[i].probs[1] and not draws[i - 1].probs[1])
    extra = np.cumsum([draw.counts[1] - 0.5 * 8 for draw in draws[back:]])
    # The trained mix lacks at most its whole quota, q * B a batch, over a memory of `horizon` batches.
    assert 8 < extra.max() <= 0.5 * 8 * controller.horizon
    assert np.mean([draw.counts[1] for draw in draws[-20:]]) == pytest.approx(4.0, abs=0.3)


def test_single_class_stream_goes_on():
    assert [y for _, y in stream([0] * 100, FeedbackController(3))] == [0] * 100


@pytest.mark.parametrize("size", [0, 1, 5, 8, 13])
def test_short_source_is_handed_out_whole(size):
    """A source shorter than the buffers or a batch is handed out completely."""
    assert len(list(stream([0, 1, 0, 1, 1, 0, 1] * 2, buffer_size=4).batches())) == 2
    assert len(list(stream([0] * size or [], FeedbackController(2)))) == size


def test_samples_may_be_mappings():
    def source():
        for i in range(80):
            yield {"text": f"sample {i}", "label": torch.tensor(i % 4)}

    samples = list(FairStream(source(), FeedbackController(4), batch_size=8, return_weights=True))
    assert len(samples) == 80
    assert all(label_of(int(s["text"].split()[1])) == int(s["label"]) for s in samples)
    assert samples[0]["weight"] == 1.0


def test_label_fn():
    """label_fn returns the class of a sample."""
    drawn = list(FairStream(range(160), FeedbackController(4), batch_size=8, label_fn=label_of))
    assert np.bincount([label_of(item) for item in drawn]).tolist() == [40] * 4


@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_workers_split_a_plain_iterable(workers):
    """Each worker reads its shard, and each batch has one p."""
    labels = long_tail(2400)
    source = stream(labels, FeedbackController(4, TARGET), return_weights=True)
    seen = []
    for items, y, w in DataLoader(source, batch_size=8, num_workers=workers):
        assert [labels[item] for item in items.tolist()] == y.tolist()
        assert {len(set(w[y == c].tolist())) for c in range(4)} <= {0, 1}  # one p a batch
        if workers:
            assert len({item % workers for item in items.tolist()}) == 1
        seen += y.tolist()
    assert len(seen) == 2400
    assert np.bincount(seen[400:]) / len(seen[400:]) == pytest.approx(TARGET, abs=0.03)


@pytest.mark.parametrize("workers", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_ranks_split_a_plain_iterable(workers):
    items = []
    for rank in range(2):
        tracker = StreamTracker(stream(long_tail(1001), buffer_size=64), rank, 2)
        loader = DataLoader(tracker.stream, batch_size=8, num_workers=workers)
        items.append([i for batch, _ in loader for i in batch.tolist()])
        # The sizes of the shards differ by at most one, because ranks train in step.
        assert len(tracker.stream) == 500
        assert len(items[-1]) == 501 - rank
    assert {i % 2 for i in items[0]} == {0}
    assert {i % 2 for i in items[1]} == {1}


@pytest.mark.slow
def test_iterable_dataset_shards_itself():
    items = [i for x, y, i in DataLoader(mixed(400, FeedbackController(4)), batch_size=8, num_workers=2)]
    assert len(torch.cat(items)) == 400


@pytest.mark.slow
def test_losses_reach_workers():
    """After a high loss was reported, a worker draws more of the class."""
    controller = FeedbackController(2, lambda2=0.5, loss_ema_decay=0.0)
    source = FairStream(cycle([(0, 0), (0, 1)]), controller, batch_size=16)
    counts = []
    for _, y in islice(DataLoader(source, batch_size=16, num_workers=1), 150):
        counts.append(int(y.sum()))
        source.step_update(y, y.double() * 5.0)
    assert counts[0] == 8
    assert np.mean(counts[-50:]) > 10.0


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_schedules_follow_training_step(workers):
    """A schedule is evaluated at the step that trains on the batch, with workers too."""
    controller = FeedbackController(2, alpha=schedules.Linear(0.0, 10.0, 100))
    loader = make_stream_fair(DataLoader(stream([0, 1] * 400, controller), batch_size=8, num_workers=workers))
    alphas = [loader.pop_pending().draw.alpha for _ in loader]
    assert alphas == pytest.approx([controller.alpha(step, 0) for step in range(100)])


class Epochs(IterableDataset):
    def __init__(self):
        self.epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        assert get_worker_info() is not None
        return ((self.epoch, 0) for _ in range(16))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_set_epoch_reaches_workers(persistent):
    source = FairStream(Epochs(), FeedbackController(1), batch_size=8, buffer_size=8, max_reuse=1)
    loader = DataLoader(source, batch_size=8, num_workers=1, persistent_workers=persistent)
    assert {epoch for x, _ in loader for epoch in x.tolist()} == {-1}
    for number in (3, 4):
        source.set_epoch(number)
        assert {epoch for x, _ in loader for epoch in x.tolist()} == {number}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"buffer_size": 3, "max_reuse": 2}, r"buffer_size \* max_reuse must be at least batch_size, got 3 \* 2 < 8"),
    ],
)
def test_settings_out_of_range_raise(settings, match):
    with pytest.raises(ValueError, match=match):
        FairStream([], FeedbackController(2), **{"batch_size": 8, **settings})


def test_source_must_be_iterable():
    with pytest.raises(TypeError, match="source must be an IterableDataset or another iterable of samples, got 7"):
        FairStream(7, FeedbackController(2), batch_size=8)


def test_stream_without_controller_raises():
    with pytest.raises(RuntimeError, match="FairSampling creates it when training begins"):
        list(FairStream([(0, 0)], batch_size=8))
