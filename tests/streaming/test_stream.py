"""A stream made fair: the laws of its batches, its buffers, and its way through workers, ranks and Lightning."""

import importlib
import logging
import pickle
import sys
from collections import Counter
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers.logger import Logger
from lightning_helpers import Weighted, fit, in_any_order, trainer
from rank_runs import Ranks
from stream_runs import TARGET, Files, Shards, Sums, Watching, in_turns, mixed, train_on_stream
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import lightning_fair.streaming.stream as stream_module
from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackController, importance_weights, schedules
from lightning_fair.dataloaders.checks import check_loader
from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.streaming.buffers import ClassBuffers, cap_mix
from lightning_fair.streaming.worker_balancing import WorkerBalancing, balance_mixes


def stream(labels, controller=None, **settings):
    """A stream of ``(place, label)``."""
    labels = list(labels)
    controller = controller or FeedbackController(max(labels) + 1)
    return FairStream(list(enumerate(labels)), controller, **{"batch_size": 8, **settings})


def long_tail(size, shares=(0.8, 0.12, 0.05, 0.03), seed=0):
    return np.random.default_rng(seed).choice(len(shares), size, p=shares).tolist()


def turning(turns, size, share=0.99, seed=0):
    """Labels of two classes of which first the one and then the other is the frequent one."""
    rng = np.random.default_rng(seed)
    return np.concatenate([(rng.random(size) < share) ^ (turn % 2 == 0) for turn in range(turns)]).astype(int).tolist()


def label_of(item):
    return item % 4


class Reading:
    """An iterable that counts what was read of it."""

    def __init__(self, labels):
        self.labels, self.read = list(labels), 0

    def __iter__(self):
        for item in enumerate(self.labels):
            self.read += 1
            yield item


# -- mixes and buffers ---------------------------------------------------------------------------------------


shares = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=8)


@given(shares, st.data())
def test_mix_under_caps_fills_them_and_keeps_the_proportions_of_the_others(values, data):
    p = np.array(values) / np.sum(values)
    most = np.array(data.draw(st.lists(st.floats(0.0, 2.0), min_size=p.size, max_size=p.size)))
    if most.sum() < 1.0:
        most += (1.001 - most.sum()) / p.size
    mix = cap_mix(p, most)
    assert mix.sum() == pytest.approx(1.0)
    assert (mix <= most + 1e-12).all()
    free = mix < most - 1e-9
    levels = mix[free] / p[free]
    assert np.allclose(levels, levels[:1])
    # Who is capped would have had at least as much at that level.
    assert (mix[~free] <= p[~free] * levels.max(initial=0.0) + 1e-9).all() or not free.any()


def test_mix_is_left_alone_where_no_class_lacks_anything():
    p = np.array([0.7, 0.3])
    assert cap_mix(p, np.array([0.7, 5.0])) is p


def test_share_of_a_class_that_is_not_there_goes_to_the_others_in_proportion():
    assert cap_mix(np.array([0.5, 0.3, 0.2]), np.array([0.0, 9.0, 9.0])) == pytest.approx([0.0, 0.6, 0.4])


def test_class_without_probability_gets_what_nobody_else_can_fill():
    assert cap_mix(np.array([0.0, 1.0]), np.array([2.0, 0.25])) == pytest.approx([0.75, 0.25])


class SlowBuffer:
    """One class's buffer again, slowly: a list of ``[uses, age, sample]``."""

    def __init__(self, limit, reuse):
        self.limit, self.reuse, self.items, self.clock = limit, reuse, [], 0

    def add(self, samples):
        for sample in samples:
            if len(self.items) == self.limit:
                self.items.remove(max(self.items, key=lambda item: (item[0], -item[1])))
            self.items.append([0, self.clock, sample])
            self.clock += 1

    def take(self, count):
        taken = []
        for _ in range(count):
            item = min(self.items, key=lambda item: (item[0], item[1]))
            taken.append(item[2])
            item[0], item[1] = item[0] + 1, self.clock  # among equals the one that has waited longest
            self.clock += 1
            if item[0] == self.reuse:
                self.items.remove(item)
        return taken


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=30),
)
def test_buffer_hands_out_as_a_slow_one_does(limit, reuse, moves):
    buffers, slow, number = ClassBuffers(1, limit, reuse), SlowBuffer(limit, reuse), 0
    for come, go in moves:
        new = list(range(number, number + come))
        number += come
        # One by one: of more than the limit at once only the newest are looked at.
        for sample in new:
            buffers.add({0: [sample]})
        slow.add(new)
        go = min(go, int(buffers.available[0]))
        assert sorted(buffers.take(np.array([go]))) == sorted(slow.take(go))
        assert sorted(buffers.samples(0)) == sorted(item[2] for item in slow.items)
        assert buffers.held[0] == len(slow.items) <= limit
        assert buffers.available[0] == sum(reuse - item[0] for item in slow.items)


# -- the laws of a batch -------------------------------------------------------------------------------------


def test_counts_are_the_floor_or_the_ceiling_of_the_records_mix():
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
    assert np.ptp(moved, axis=0).min() > 0.05  # where p stands still, nothing is tested


@pytest.mark.parametrize("workers", [0, 2])
def test_weighted_mean_is_unbiased_while_p_moves(workers):
    """Each class has the same f, so E[mean(w f)] = sum(q f), batch by batch, whatever p is.

    The rounding of the counts of 8 samples makes the deviation of one batch's mean at most that of a sample's
    w f: below 1.5 here; of the mean over 500 batches 0.07, if they were independent.
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


def test_probabilities_of_the_batch_at_hand_are_those_of_its_draw():
    controller = FeedbackController(4, TARGET)
    source = stream(long_tail(800), controller, return_weights=True)
    for _, y, w in DataLoader(source, batch_size=8):
        assert torch.allclose(w, importance_weights(y, controller.get_target(), controller.get_probs()))
        source.step_update(y)
    assert controller.draws == 100
    assert controller.in_flight == ()


def test_a_99_to_1_stream_is_trained_on_half_and_half_from_the_first_batches():
    controller = FeedbackController(2)
    off = []
    for draw, _ in stream(turning(1, 12_800), controller, batch_size=64).batches(in_flight=True):
        off.append(abs(controller.trained_mix[1] - 0.5))
        controller.report(draw.counts, draw=draw)
    assert max(off[16:]) < 0.02


def test_after_each_turn_the_trained_mix_is_within_2_percent_in_16_batches():
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


# -- bounds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [1, 3])
def test_reads_per_sample_handed_out_are_bounded_and_an_epoch_has_the_sources_length(reads):
    source = Reading(long_tail(3000))
    fair = FairStream(source, FeedbackController(4), batch_size=16, buffer_size=64, reads_per_sample=reads)
    handed = 0
    for _, samples in fair.batches():
        handed += len(samples)
        # As many batches are read at once as are drawn at once: those of which a class takes no more than a buffer.
        assert source.read <= (handed + 16) * reads + 64
    assert source.read == 3000
    assert handed == 3000 // reads
    assert len(FairStream([0] * 3000, batch_size=8, reads_per_sample=reads)) == 3000 // reads


@pytest.mark.parametrize("reuse", [1, 2, 5])
def test_no_sample_is_handed_out_more_than_reuse_times(reuse):
    uses = Counter(item for item, _ in stream(long_tail(2000), max_reuse=reuse, buffer_size=32))
    assert max(uses.values()) == reuse
    assert sum(uses.values()) <= 2000


def test_samples_are_used_once_where_a_class_has_enough_of_them():
    labels = long_tail(2000, (0.5, 0.5))
    uses = Counter(item for item, _ in stream(labels, buffer_size=64))
    assert np.mean([uses[item] == 1 for item in range(2000)]) > 0.95


@pytest.mark.parametrize("batch", [8, 128])
def test_what_is_read_at_once_does_not_push_itself_out_unused(batch):
    labels = long_tail(20_000, (0.5, 0.5))
    used = {item for item, _ in stream(labels, batch_size=batch, buffer_size=256)}
    assert len(used) > 0.95 * len(labels)


def test_a_worker_reads_evenly():
    """What is read for a batch while others train is what the batch hands out."""
    read, source = [], Reading(long_tail(800))
    fair = FairStream(source, FeedbackController(4), batch_size=8, buffer_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=1))
        for _ in fair.batches():
            read.append(source.read)
    assert read[0] == 32 + 8
    assert set(np.diff(read[:-5])) == {8}


def test_buffers_hold_no_more_than_their_limit_and_keep_no_block_alive():
    def blocks():
        for start in range(0, 4096, 512):  # a reader that hands out slices of what it reads at once
            images = torch.zeros(512, 28, 28)
            for i in range(512):
                yield images[i], (start + i) % 7 % 4

    source = FairStream(blocks(), FeedbackController(4), batch_size=32, buffer_size=50)
    for _ in source.batches():
        pass
    kept = source._buffers
    assert kept.held.max() == 50  # the limit is reached, and so is tested
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for y in range(4) for x, _ in kept.samples(y)
    }
    assert sum(storages.values()) <= 1.1 * 4 * 50 * 28 * 28 * 4


@pytest.mark.parametrize("of", [torch.Tensor, np.ndarray])
def test_slices_are_copied(of):
    images = torch.zeros(400, 28, 28) if of is torch.Tensor else np.zeros((400, 28, 28))
    fair = FairStream([(images[i], i % 4) for i in range(400)], FeedbackController(4), batch_size=8, buffer_size=50)
    assert all((x._base if of is torch.Tensor else x.base) is None for x, _ in fair)


def test_copies_of_a_process_begin_with_empty_buffers():
    fair = stream(long_tail(80))
    list(fair)
    assert fair._buffers is not None
    assert pickle.loads(pickle.dumps(fair))._buffers is None


def test_samples_of_a_class_without_target_are_not_held():
    source = stream(long_tail(800), FeedbackController(4, [0.5, 0.5, 0.0, 0.0]))
    assert {y for _, y in source} == {0, 1}
    assert source._buffers.held[2:].tolist() == [0, 0]


def test_what_the_buffers_hold_is_there_for_the_next_iteration():
    source = stream([0] * 100 + [1] * 100, buffer_size=16)
    list(source)
    first = next(iter(source.batches()))[0]
    assert first.counts.min() > 0


# -- classes that go and come ----------------------------------------------------------------------------------


def gone_for_a_while():
    """Three classes; class 1 comes for 100 batches, stays away for 100, and comes again."""
    there, away = cycle([0, 1, 2, 2]), cycle([0, 2, 2])
    return [*islice(there, 800), *islice(away, 800), *islice(there, 800)]


def test_class_that_stays_away_stalls_nothing_and_its_share_goes_to_the_others_in_proportion():
    target = np.array([0.1, 0.5, 0.4])
    draws = [
        draw
        for draw, _ in stream(gone_for_a_while(), FeedbackController(3, target), max_reuse=2, buffer_size=16).batches()
    ]
    away = [draw for draw in draws if draw.probs[1] == 0][:60]
    assert away[-1].draw_id - away[0].draw_id < 70
    drawn = np.sum([draw.counts for draw in away], axis=0)
    assert drawn[[0, 2]] / drawn.sum() == pytest.approx([0.2, 0.8], abs=0.04)  # half each of class 1's: 0.35, 0.65
    assert sum(draw.counts.sum() for draw in draws) == 2400


def test_catching_up_is_bounded_by_the_horizon():
    controller = FeedbackController(3, [0.2, 0.5, 0.3])
    draws = [draw for draw, _ in stream(gone_for_a_while(), controller, max_reuse=4, buffer_size=64).batches()]
    back = next(i for i in range(150, len(draws)) if draws[i].probs[1] and not draws[i - 1].probs[1])
    extra = np.cumsum([draw.counts[1] - 0.5 * 8 for draw in draws[back:]])
    # The trained mix lacks at most its whole quota, q * B a batch, over a memory of `horizon` batches.
    assert 8 < extra.max() <= 0.5 * 8 * controller.horizon
    assert np.mean([draw.counts[1] for draw in draws[-20:]]) == pytest.approx(4.0, abs=0.3)


def test_log_says_once_that_a_class_has_gone_and_once_that_it_is_back(caplog):
    with caplog.at_level(logging.INFO, "lightning_fair"):
        list(stream(gone_for_a_while(), max_reuse=2, buffer_size=16))
    gone, back = [record.getMessage() for record in caplog.records]
    assert gone.startswith("Class 1 is missing from the stream: not available for 16 batches, the last being batch ")
    assert back.startswith("Class 1 is back in the stream: in batch ")


def test_log_says_that_a_class_has_not_come_yet(caplog):
    list(stream([0] * 400 + [1] * 400, buffer_size=8))
    assert [record.getMessage()[:22] for record in caplog.records] == [
        "Class 1 has not arrive",
        "Class 1 has arrived: i",
    ]


@pytest.mark.parametrize("worker", [False, True])
def test_log_is_quiet_of_a_class_that_has_no_target_yet(caplog, worker):
    """Class 1 comes from batch 70 on, and the target has something of it from batch 60 on."""
    target = schedules.Shift(schedules.Step(0.0, 1.0, at=60), [1.0, 0.0], [0.5, 0.5])
    fair = stream([0] * 560 + [0, 1] * 120, FeedbackController(2, target), buffer_size=8)
    if worker:
        control = StreamTracker(fair)
        for draw, _ in fair.batches():
            control.report(draw)
    else:
        list(fair)
    assert caplog.records == []


def test_log_is_quiet_of_a_class_that_is_rare_but_comes(caplog):
    list(stream(long_tail(2000, (0.7, 0.1, 0.1, 0.1)), max_reuse=1))
    assert caplog.records == []


def test_stream_of_one_class_only_goes_on():
    assert [y for _, y in stream([0] * 100, FeedbackController(3))] == [0] * 100


@pytest.mark.parametrize("size", [0, 1, 5, 8, 13])
def test_short_source_is_handed_out_whole(size):
    assert len(list(stream([0, 1, 0, 1, 1, 0, 1] * 2, buffer_size=4).batches())) == 2
    assert len(list(stream([0] * size or [], FeedbackController(2)))) == size


# -- sources, samples and workers --------------------------------------------------------------------------------


def test_samples_may_be_any_objects():
    def source():
        for i in range(80):
            yield {"text": f"sample {i}", "label": torch.tensor(i % 4)}

    samples = list(FairStream(source(), FeedbackController(4), batch_size=8, return_weights=True))
    assert len(samples) == 80
    assert all(label_of(int(s["text"].split()[1])) == int(s["label"]) for s in samples)
    assert samples[0]["weight"] == 1.0


def test_label_says_where_the_class_of_a_sample_is():
    drawn = list(FairStream(range(160), FeedbackController(4), batch_size=8, label_fn=label_of))
    assert np.bincount([label_of(item) for item in drawn]).tolist() == [40] * 4


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_every_worker_has_its_shard_of_a_plain_iterable_and_batches_are_draws(workers):
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


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_every_rank_has_its_shard_of_a_plain_iterable(workers):
    items = []
    for rank in range(2):
        control = StreamTracker(stream(long_tail(1001), buffer_size=64), rank, 2)
        loader = DataLoader(control.stream, batch_size=8, num_workers=workers)
        items.append([i for batch, _ in loader for i in batch.tolist()])
        # As many as the length says, or a few more: the ranks stop in step.
        assert len(control.stream) == 500
        assert len(items[-1]) == 501 - rank
    assert {i % 2 for i in items[0]} == {0}
    assert {i % 2 for i in items[1]} == {1}


def test_iterable_dataset_shards_itself():
    items = [i for x, y, i in DataLoader(mixed(400, FeedbackController(4)), batch_size=8, num_workers=2)]
    assert len(torch.cat(items)) == 400


def test_losses_reach_the_workers():
    """The batches that a worker draws after the losses came hold more of the class that has the high loss."""
    controller = FeedbackController(2, lambda2=0.5, loss_ema_decay=0.0)
    source = FairStream(cycle([(0, 0), (0, 1)]), controller, batch_size=16)
    counts = []
    for _, y in islice(DataLoader(source, batch_size=16, num_workers=1), 150):
        counts.append(int(y.sum()))
        source.step_update(y, y.double() * 5.0)
    assert counts[0] == 8
    assert np.mean(counts[-50:]) > 10.0


@pytest.mark.parametrize("workers", [0, 2])
def test_schedules_follow_the_step_that_will_have_the_batch(workers):
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


@pytest.mark.parametrize("persistent", [False, True])
def test_epoch_reaches_the_source_in_the_workers(persistent):
    source = FairStream(Epochs(), FeedbackController(1), batch_size=8, buffer_size=8, max_reuse=1)
    loader = DataLoader(source, batch_size=8, num_workers=1, persistent_workers=persistent)
    assert {epoch for x, _ in loader for epoch in x.tolist()} == {-1}
    for number in (3, 4):
        source.set_epoch(number)
        assert {epoch for x, _ in loader for epoch in x.tolist()} == {number}


# -- workers whose shards differ ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "target", "mixes"),
    [
        ([[0], [0, 1]], [0.5, 0.5], [[1, 0], [0, 1]]),
        ([[0], [0, 1], [0, 1]], [0.5, 0.5], [[1, 0], [0.25, 0.75], [0.25, 0.75]]),
        ([[0, 1], [1, 2]], [1 / 3] * 3, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]),
        ([[1, 2], [0, 2], [0, 1]], [1 / 3] * 3, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
        ([[0], [0, 1], [0, 1, 2]], [1 / 3] * 3, np.eye(3)),
        ([[0, 1], [0, 1]], [0.2, 0.3, 0.5], [[0.4, 0.6, 0]] * 2),  # nobody has class 2
        ([[0], [0, 1]], [0.2, 0.3, 0.5], [[0.8, 0, 0], [0, 1, 0]]),  # nobody has class 2, and one class 0 only
        ([[0], [1, 2]], [0.2, 0.4, 0.4], [[1, 0, 0], [0, 0.5, 0.5]]),  # more of class 0 than can be avoided
    ],
    ids=str,
)
def test_mixes_of_all_workers_together_are_the_target(files, target, mixes):
    target = np.array(target)
    most = np.where([[y in labels for y in range(target.size)] for labels in files], np.inf, 0.0)
    found = balance_mixes(target, most)
    assert found.sum(axis=1) == pytest.approx(1.0)
    mixes = np.array(mixes, dtype=float)
    assert found == pytest.approx(mixes / mixes.sum(axis=1, keepdims=True), abs=0.02)


@given(st.integers(2, 8), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_mixes_of_all_workers_keep_within_what_each_has(places, num_classes, seed):
    rng = np.random.default_rng(seed)
    mixes = rng.dirichlet(np.full(num_classes, 0.5), places)
    bound = rng.random(mixes.shape) < rng.random()
    found = balance_mixes(mixes.mean(axis=0), np.where(bound, mixes, np.inf))
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert (found >= 0).all()
    assert np.where(bound & ~bound.all(axis=1, keepdims=True), found - mixes, 0.0).max() < 1e-9
    assert np.abs(found.mean(axis=0) - mixes.mean(axis=0)).sum() / 2 < 0.1  # in one of a hundred more than 0.01


def test_worker_with_nothing_that_has_a_target_leaves_it_to_the_others():
    assert balance_mixes(np.array([1.0, 0.0]), np.array([[0.0, np.inf], [np.inf, np.inf]]))[1].tolist() == [1.0, 0.0]


def drawn_together(files, workers, controller=None, size=6400, **settings):
    """Counts and mixes of each turn of the workers' draws, shape ``(turns, workers, K)``."""
    controller = controller or FeedbackController(2)
    source = FairStream(Files(files, size), controller, **{"batch_size": 32, "buffer_size": 64, **settings})
    turns = [[draw for _, (draw, _) in turn] for turn in in_turns(source, workers)]
    turns = [turn for turn in turns if len(turn) == workers and not turn[-1].ended]
    return tuple(np.array([[getattr(draw, name) for draw in turn] for turn in turns]) for name in ("counts", "probs"))


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        ([[0], [0, 1]], 2),
        ([[0], [0, 1], [0, 1]], 2),
        ([[0]] * 3 + [[0, 1]] * 3, 2),
        ([[0]] * 4 + [[0, 1]] * 4, 2),
        ([[0, 1], [1, 2]], 3),
        ([[1, 2], [0, 2], [0, 1]], 3),
        ([[0] * 9 + [1], [1]], 2),
        ([list(range(5)), list(range(10))], 10),
    ],
    ids=str,
)
def test_workers_together_reach_the_target_where_their_shards_differ(files, classes):
    controller = FeedbackController(classes)
    counts, probs = drawn_together(files, len(files), controller)
    share = counts.sum(axis=1) / counts.sum(axis=(1, 2))[0, None, None][0]
    late = share[2 * 16 :]
    assert late.mean(axis=0) == pytest.approx(1 / classes, abs=0.005)
    rows = np.lib.stride_tricks.sliding_window_view(late, 16, axis=0).mean(axis=-1)
    assert np.abs(rows - 1 / classes).max() < 0.025
    # The record is what was drawn: no class off by a whole sample, and none drawn that has no share.
    assert np.abs(counts - 32 * probs).max() < 1 + 1e-6
    assert not counts[probs == 0].any()
    assert probs[2 * 16 :][probs[2 * 16 :] > 0].min() > 1 / (20 * classes)  # so that q / p is never large


def test_class_that_no_worker_has_goes_to_the_others_in_proportion():
    controller = FeedbackController(3, [0.2, 0.3, 0.5])
    counts, _ = drawn_together([[0, 1]] * 2, 2, controller)
    assert counts.mean(axis=0) / 32 == pytest.approx(np.array([[0.4, 0.6, 0.0]] * 2), abs=0.01)
    counts, _ = drawn_together([[0], [0, 1]], 2, controller)
    assert counts[48:].sum(axis=(0, 1)) / counts[48:].sum() == pytest.approx([0.5, 0.5, 0.0], abs=0.01)


def test_worker_whose_class_comes_is_asked_for_it_again():
    class Late(Files):
        def __iter__(self):
            for number, sample in enumerate(super().__iter__()):
                yield sample if stream_module.get_worker_info().id or number > 3200 else (sample[0], 0)

    source = FairStream(Late([[0, 1], [0, 1]], 9600), FeedbackController(2), batch_size=32, buffer_size=64)
    probs = [[draw.probs[1] for _, (draw, _) in turn] for turn in in_turns(source, 2)]
    assert probs[80] == pytest.approx([0.0, 1.0], abs=0.01)
    assert probs[200] == pytest.approx([0.5, 0.5], abs=0.02)


def test_worker_whose_shard_has_ended_is_made_up_for_no_more():
    class Ending(Files):
        def __iter__(self):
            return islice(super().__iter__(), None if stream_module.get_worker_info().id else 2000)

    source = FairStream(Ending([[0], [0, 1]], 6400), FeedbackController(2), batch_size=32, buffer_size=64)
    probs = [{place: draw.probs[1] for place, (draw, _) in turn} for turn in in_turns(source, 2)]
    assert probs[55] == pytest.approx({0: 0.0, 1: 1.0}, abs=0.01)
    assert probs[100] == pytest.approx({1: 0.5}, abs=0.02)


def test_loss_emphasis_acts_where_shards_differ_too():
    controller = FeedbackController(2, lambda2=0.5)
    source = FairStream(Files([[0, 1], [0, 1], [0]], 6400), controller, batch_size=32, buffer_size=64)
    controller.loss_score = np.array([-1.0, 1.0])
    source.share()
    last = [[draw.counts[1] for _, (draw, _) in turn] for turn in in_turns(source, 3)][100:190]
    assert np.mean(last, axis=0)[:2] / 32 == pytest.approx(0.86, abs=0.06)  # 0.75 without


@pytest.mark.parametrize("labels", [long_tail(4800), [0] * 2400 + long_tail(2400)], ids=["long tail", "late"])
@pytest.mark.parametrize("workers", [2, 3])
def test_draws_are_those_of_each_worker_alone_where_shards_are_alike(monkeypatch, labels, workers):
    def drawn():
        source = stream(labels, FeedbackController(4, TARGET), buffer_size=64, return_weights=True, max_reuse=8)
        return [torch.stack([x.double() for x in batch]) for batch in DataLoader(source, 8, num_workers=workers)]

    balance_mixes = drawn()
    monkeypatch.setattr(FairStream, "_balancing", lambda _: None)
    alone = drawn()
    assert len(alone) == len(balance_mixes) == 600
    assert all(map(torch.equal, balance_mixes, alone))


class Shares(Weighted):
    """Notes the share of class 1 in each batch."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.steps.append(y.double().mean().item())
        return self.reduce(self.losses(x, y))


@pytest.mark.parametrize("source", ["files", "list"])
@pytest.mark.parametrize("workers", [2, 3])
def test_trained_mix_reaches_the_target_whatever_the_workers_shards_hold(source, workers, caplog):
    """The list has a label order of period 10, so of two workers one reads no sample of class 1."""
    files = Files([[0]] + [[0, 1]] * (workers - 1), 6400 // workers * 2)
    samples = [(torch.zeros(4), int(i % 10 == 9)) for i in range(12_800)] if source == "list" else files
    module, callback = Shares(), FairSampling(num_classes=2)
    loader = DataLoader(FairStream(samples, batch_size=32), batch_size=32, num_workers=workers)
    fit(module, loader, callback, max_steps=300)
    late = module.steps[2 * 16 * workers : 200 // workers * workers]
    assert np.mean(late) == pytest.approx(0.5, abs=0.01)
    assert callback.controller.trained_mix == pytest.approx(0.5, abs=0.03)
    assert [record for record in caplog.records if record.name == "lightning_fair"] == []


@pytest.mark.parametrize("q", [0.5, 0.3])
def test_weighted_losses_of_all_workers_stand_for_the_target_where_shards_differ(q):
    """Each class has its own loss, so the mean over all batches of mean(w * loss) shows what they stand for."""
    controller = FeedbackController(2, [1 - q, q])
    source = FairStream(Files([[0], [0, 1], [0, 1]], 3200), controller, batch_size=32, return_weights=True)
    batches = [(y, w) for _, y, w in DataLoader(source, batch_size=32, num_workers=3)][96:288]
    risks = [torch.zeros(2).index_add_(0, y, w) / 32 for y, w in batches]
    assert torch.stack(risks).mean(dim=0).tolist() == pytest.approx([1 - q, q], abs=0.02)
    assert torch.cat([y for y, _ in batches]).double().mean() == pytest.approx(q, abs=0.02)
    assert max(w.max().item() for _, w in batches) < 2.0


def test_the_callback_weights_them_so_too():
    class Risks(Weighted):
        def training_step(self, batch, batch_idx):
            x, y = batch
            self.steps.append(self.weighted_loss((y == 1).float() + 0.0 * self.losses(x, y)).item())
            return self.weighted_loss(self.losses(x, y))

    module = Risks()
    loader = DataLoader(FairStream(Files([[0], [0, 1]], 6400), batch_size=32), batch_size=32, num_workers=2)
    fit(module, loader, FairSampling(num_classes=2), max_steps=200)
    assert np.mean(module.steps[100:180]) == pytest.approx(0.5, abs=0.02)


def told(table, place, left, *, stamp=1.0, draws=16, horizon=16.0):
    """A worker that has drawn some batches of 8 of two classes from what was there."""
    fellow, left = WorkerBalancing(table, place, 2, stamp, horizon), np.array(left)
    for _ in range(draws):
        fellow.publish(left, 8, np.array([0.5, 0.5]), left / left.sum())
    return fellow


def test_only_workers_of_this_iteration_that_are_at_work_act():
    q = np.array([0.5, 0.5])
    table = np.zeros(WorkerBalancing.table_shape(2))
    one, other = told(table, 0, [9, 0]), told(table, 1, [9, 9])
    assert other.target_mix(q).mix.tolist() == [0.0, 1.0]
    assert one.target_mix(q).mix[0] == pytest.approx(2 / 3)  # it would take class 1 where there was some
    assert [one.is_first, other.is_first] == [True, False]
    one.leave()
    assert other.target_mix(q) is None
    assert other.is_first
    told(table, 0, [9, 0])
    anew = told(table, 1, [9, 9], stamp=2.0)  # the row of worker 0 is of an iteration before
    assert anew.target_mix(q) is None
    other.leave()  # of the iteration before: the row is another's now
    told(table, 0, [9, 0], stamp=2.0)
    assert anew.target_mix(q) is not None


def test_workers_wait_for_a_horizon_before_they_make_up_for_each_other():
    table = np.zeros(WorkerBalancing.table_shape(2))
    other = told(table, 1, [9, 9])
    one = told(table, 0, [9, 0], draws=15)
    assert other.target_mix(np.array([0.5, 0.5])) is None
    one.publish(np.array([9, 0]), 8, np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    assert other.target_mix(np.array([0.5, 0.5])) is not None


def test_workers_beyond_the_table_draw_for_themselves():
    assert WorkerBalancing.table_shape(2) == (64, 8)
    rows, width = WorkerBalancing.table_shape(100_000)
    assert rows == 3
    assert rows * width <= 2**20
    counts, _ = drawn_together([[0]] + [[0, 1]] * 64, 65, size=640)
    assert counts[-1, 1:].mean(axis=0) == pytest.approx([16, 16], abs=2)


def test_log_of_several_workers_says_it_once_and_counts_all_their_batches(caplog):
    source = FairStream(Files([[0]] * 2, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    assert sum(1 for _ in in_turns(source, 2, samples=True)) == 201
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Class 1 has not arrived yet: not available for 17 batches, the last being batch 16.")


@pytest.mark.parametrize("files", [[[0], [0, 1]], [[0, 1], [0]]], ids=str)
@pytest.mark.parametrize("lightning", [False, True])
def test_log_is_quiet_of_a_class_that_some_worker_has(caplog, files, lightning):
    source = FairStream(Files(files, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    control = StreamTracker(source)
    for turn in in_turns(source, 2, samples=not lightning):
        for _, made in turn if lightning else ():
            control.report(made[0])
    assert caplog.records == []


def test_log_under_lightning_names_a_class_that_no_worker_has(caplog):
    source = FairStream(Files([[0]] * 2, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    control = StreamTracker(source)
    for turn in in_turns(source, 2):
        for _, (draw, _) in turn:
            control.report(draw)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Class 1 has not arrived yet: not available for 16 batches, the last being batch 15.")


# -- through Lightning -------------------------------------------------------------------------------------------


def moving(**settings):
    return FairSampling(**{"target_probs": TARGET, "lambda2": 0.3, "loss_ema_decay": 0.0, **settings})


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_workers": 2}, pytest.param({"num_workers": 2, "in_order": False}, marks=in_any_order)],
    ids=str,
)
def test_every_batch_has_the_weights_of_its_own_draw(settings):
    """The weight that the process which drew it gave each sample is the one that acts in the training step."""
    module, callback = Watching(), moving()
    source = mixed(1200, None, return_weights=True)
    fit(module, DataLoader(source, batch_size=8, **settings), callback, max_epochs=2)
    assert len(module.steps) == 300
    assert sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps) == 0
    assert np.ptp([drawn.max() for _, drawn in module.steps]) > 0.1
    assert callback.controller.draws == 300
    assert callback.sampler.arrived.sum() == 2400
    assert not np.isnan(callback.controller.ema_loss).any()


def test_controller_follows_what_was_trained_on():
    module, callback = Watching(), moving(lambda2=0.0)
    fit(module, DataLoader(mixed(2400, None, return_weights=True), batch_size=8), callback)
    assert callback.controller.trained_mix == pytest.approx(TARGET, abs=0.03)
    assert callback.sampler.handed_out / callback.sampler.handed_out.sum() == pytest.approx(TARGET, abs=0.02)


def test_stream_with_a_controller_of_its_own_keeps_it():
    controller = FeedbackController(4, TARGET)
    callback = FairSampling(alpha=2.0)
    with pytest.warns(UserWarning, match="has a controller of its own"):
        fit(Watching(), DataLoader(mixed(80, controller, return_weights=True), batch_size=8), callback)
    assert callback.controller is controller
    assert controller.draws == 10


def test_one_of_several_loaders_may_be_a_stream():
    class Two(Watching):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["stream"], batch_idx)

    module, callback = Two(), moving(dataloader="stream")
    other = DataLoader(torch.zeros(96, 3), batch_size=8)
    fit(module, {"other": other, "stream": DataLoader(mixed(400, None, return_weights=True), batch_size=8)}, callback)
    assert sum(not np.allclose(acted, drawn, rtol=1e-5) for acted, drawn in module.steps) == 0
    assert len(module.steps) == 50


def test_checkpoint_has_the_controller_and_not_the_streams_place(tmp_path):
    def run(ckpt=None, **settings):
        module, callback = Watching(), moving()
        made = trainer(callback, default_root_dir=tmp_path, **settings)
        made.fit(module, DataLoader(mixed(400, None, return_weights=True), batch_size=8), ckpt_path=ckpt)
        return module, callback, made

    _, first, made = run(max_steps=30)
    made.save_checkpoint(tmp_path / "a.ckpt")
    seen = first.controller.state_dict()
    module, second, _ = run(tmp_path / "a.ckpt", max_steps=60, max_epochs=2)
    assert second.controller.draws == 30 + len(module.steps) > 40
    assert second.sampler.arrived.sum() > first.sampler.arrived.sum()
    # The first batch after it goes on from the mix that was trained on.
    third = moving()
    third.setup(trainer(third), Watching(), "fit")
    control = StreamTracker(mixed(80, FeedbackController(4, TARGET, lambda2=0.3, loss_ema_decay=0.0)))
    control.restore({**first.sampler.capture()})
    assert control.controller.draws == 30
    draw, _ = next(control.stream.batches())
    assert draw.draw_id == 30
    assert draw.trained_mix.tolist() == seen["trained_mix"].tolist()


def test_state_of_another_kind_of_data_is_refused():
    control = StreamTracker(mixed(8, FeedbackController(4)))
    with pytest.raises(ValueError, match=r"stream reads state version 1, got None.*not a FairStream"):
        control.restore({"version": 1})


class Logged(Logger):
    name, version = "logged", 0

    def __init__(self):
        super().__init__()
        self.points = []

    def log_metrics(self, metrics, step=None):
        self.points.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass


def test_arriving_mix_is_logged_beside_the_trained_one():
    logger = Logged()
    fit(
        Watching(),
        DataLoader(mixed(3200, None, return_weights=True), batch_size=8),
        moving(lambda2=0.0),
        logger=logger,
        log_every_n_steps=1,
    )
    last = logger.points[-1]
    arriving = [last[f"fair/arriving/{c}"] for c in range(4)]
    assert arriving == pytest.approx([0.8, 0.12, 0.05, 0.03], abs=0.1)
    assert [last[f"fair/trained_mix/{c}"] for c in range(4)] == pytest.approx(TARGET, abs=0.05)


def test_two_ranks_stream_their_shards_and_agree_on_what_was_trained_on():
    ranks = Ranks(2)
    try:
        first, second = ranks(train_on_stream)
    finally:
        ranks.end()
    assert isinstance(first, Sums)
    assert first.wrong == second.wrong == 0
    assert not first.items & second.items
    assert first.trained_mix == second.trained_mix  # bit for bit
    assert first.trained_mix == pytest.approx(TARGET, abs=0.04)
    assert first.draws == second.draws == 100


def test_fair_data_module_hands_a_stream_through():
    class Module(L.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(mixed(80, FeedbackController(4), return_weights=True), batch_size=8)

    assert len(list(FairDataModule(Module()).train_dataloader())) == 10
    callback = FairSampling()
    fit(Watching(), FairDataModule(Module(), fair=callback))
    assert callback.controller.draws == 10


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"buffer_size": 0}, "buffer_size must be"),
        ({"max_reuse": 0.5}, "max_reuse must be"),
        ({"buffer_size": 3, "max_reuse": 2}, r"buffer_size \* max_reuse must be at least batch_size, got 3 \* 2 < 8"),
        ({"reads_per_sample": True}, "reads_per_sample must be"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        FairStream([], FeedbackController(2), **{"batch_size": 8, **settings})


def test_source_has_to_be_iterable():
    with pytest.raises(TypeError, match="source must be an IterableDataset or another iterable of samples, got int"):
        FairStream(7, FeedbackController(2), batch_size=8)


@pytest.mark.parametrize(
    ("sample", "error", "match"),
    [
        ((0, 4), ValueError, r"labels must lie in \[0, 4\), got 4 in the stream"),
        ((0, -1), ValueError, r"got -1 in the stream\. A negative number often marks a sample without a class: leave"),
        ((0, 2**70), ValueError, "got 1180591620717411303424"),
        ((0, 1.0), TypeError, "is one integer; got 1.0 in a tuple"),
        ((0, torch.tensor([1, 2])), TypeError, "is one integer; got tensor"),
        ("text", TypeError, "got None in a str"),
    ],
)
def test_labels_that_are_none_are_refused(sample, error, match):
    with pytest.raises(error, match=match):
        list(FairStream([sample], FeedbackController(4), batch_size=8))


def test_stream_without_a_controller_says_where_one_comes_from():
    with pytest.raises(RuntimeError, match="FairSampling creates it when training begins"):
        list(FairStream([(0, 0)], batch_size=8))


def test_batch_size_of_the_loader_has_to_be_that_of_the_stream():
    with pytest.raises(ValueError, match=r"batch_size is 4, that of its FairStream 8.*batch_size=8"):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=4), moving())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "does not show how many classes it has"),
        ({"num_classes": 4, "target_probs": "prior"}, "has no prior"),
        ({"num_classes": 4, "reference": "prior"}, "has no prior"),
        ({"num_classes": 4, "labels": [0, 1]}, "labels is for data sets with a length"),
        ({"num_classes": 4, "steps_per_epoch": 3}, "limit_train_batches"),
    ],
)
def test_settings_that_a_stream_cannot_have_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=8), FairSampling(**settings))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"seed": 3}, r"seed=3 has no effect on a FairStream: set FairStream\(seed=3\)"),
        ({"feedback_delay": 5}, "feedback_delay=5 has no effect on a FairStream"),
        ({"empty_classes": "skip"}, "empty_classes='skip' has no effect on a FairStream"),
    ],
)
def test_settings_without_effect_on_a_stream_are_named(settings, match):
    with pytest.warns(UserWarning, match=match):
        fit(Weighted(), DataLoader(mixed(80, None), batch_size=8), FairSampling(num_classes=4, **settings))


def test_bare_stream_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"is a stream: .*Use FairStream\(dataset, batch_size=...\)"):
        check_loader(DataLoader(Shards(8), batch_size=8))


# -- a streaming data set of the field ------------------------------------------------------------------------


def _write(index):
    return {"x": np.full((4, 4), index, dtype=np.float32), "label": int(index % 100 == 99)}


@pytest.mark.parametrize("workers", [0, 2])
def test_litdata_streams_are_made_fair(tmp_path, workers):
    litdata = pytest.importorskip("litdata", reason="litdata is not installed: pip install litdata")
    from litdata.streaming import Cache

    cache = Cache(str(tmp_path), chunk_size=500)
    for index in range(4000):
        cache[index] = _write(index)
    cache.done()
    cache.merge()
    source = litdata.StreamingDataset(str(tmp_path), shuffle=False)
    assert len(source) == 4000
    fair = FairStream(source, FeedbackController(2), batch_size=16, buffer_size=64, return_weights=True)
    counts, items = [], Counter()
    for batch in DataLoader(fair, batch_size=16, num_workers=workers):
        assert [int(i) % 100 == 99 for i in batch["x"][:, 0, 0]] == batch["label"].bool().tolist()
        counts.append(int(batch["label"].sum()))
        items.update(batch["x"][:, 0, 0].int().tolist())
    assert sum(items.values()) == 4000
    assert np.mean(counts[50:]) == pytest.approx(8.0, abs=0.5)
    assert max(items.values()) <= 64


# -- the benchmark ---------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    """The script, imported as Python does when it is run: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
    before = set(sys.modules)
    threads = torch.get_num_threads()
    yield importlib.import_module("stream")
    torch.set_num_threads(threads)
    for name in {"stream", "overhead", "systems"} - before:
        sys.modules.pop(name, None)


def test_samples_alive_are_within_a_tenth_of_the_stated_limit(benchmark):
    most, limit, _ = benchmark.memory(side=8)
    assert limit == 2560
    assert 0.95 * limit < most < 1.1 * limit


@pytest.mark.parametrize("loader", [False, True])
@pytest.mark.parametrize(
    ("num_classes", "buffer", "batch", "reuse"),
    [(10, 64, 32, 64), (2, 64, 32, 64), (2, 64, 128, 64), (10, 8, 32, 8), (2, 16, 32, 2), (3, 4, 4, 1)],
)
def test_beside_the_buffers_there_is_the_batch_in_hand_and_a_tenth(
    benchmark, num_classes, buffer, batch, reuse, loader
):
    """The first are the settings of `experiment=drift`."""
    most, limit, _ = benchmark.memory(4, num_classes, buffer, batch, max_reuse=reuse, loader=loader)
    assert limit == num_classes * buffer
    assert 0.9 * limit < most <= limit + batch + max(0.1 * limit, 1)


def test_recovery_is_measured_from_each_turn(benchmark):
    assert benchmark.recovery(turns=3, batch=64, seed=0, turn_size=3200) == [0, 0]


def test_tables_of_the_benchmark_are_printed(benchmark, capsys):
    benchmark.main(["--rounds", "1", "--samples", "300", "--turns", "2", "--seeds", "1"])
    printed = capsys.readouterr().out
    for name in benchmark.sources():
        assert printed.count(f"| {name} |") == 3
    assert "Recovery after 1 turns of a 99:1 stream" in printed


def test_weight_is_not_added_to_a_sample_that_has_no_place_for_it():
    stream = FairStream(
        torch.tensor([[1.0, 0.0], [2.0, 1.0]] * 8),
        FeedbackController(2),
        batch_size=4,
        label_fn=lambda s: int(s[1]),
        return_weights=True,
    )
    with pytest.raises(TypeError, match="to a tuple, a list or a mapping, but a sample is a Tensor"):
        next(iter(stream))
