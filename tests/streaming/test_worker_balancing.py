"""Workers whose shards differ balance each other."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stream_runs import TARGET, Files, in_turns, long_tail, stream
from torch.utils.data import DataLoader

import lightning_fair.streaming.stream as stream_module
from lightning_fair import FairStream, FeedbackController
from lightning_fair.streaming.worker_balancing import WorkerBalancing, balance_mixes


@pytest.mark.parametrize(
    ("files", "target", "mixes"),
    [
        ([[0], [0, 1]], [0.5, 0.5], [[1, 0], [0, 1]]),
        ([[0], [0, 1], [0, 1]], [0.5, 0.5], [[1, 0], [0.25, 0.75], [0.25, 0.75]]),
        ([[0, 1], [1, 2]], [1 / 3] * 3, [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]),
        ([[1, 2], [0, 2], [0, 1]], [1 / 3] * 3, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
        ([[0], [0, 1], [0, 1, 2]], [1 / 3] * 3, np.eye(3)),
        ([[0, 1], [0, 1]], [0.2, 0.3, 0.5], [[0.4, 0.6, 0]] * 2),  # nobody has class 2
        ([[0], [0, 1]], [0.2, 0.3, 0.5], [[0.8, 0, 0], [0, 1, 0]]),  # nobody has class 2, and one worker only class 0
        ([[0], [1, 2]], [0.2, 0.4, 0.4], [[1, 0, 0], [0, 0.5, 0.5]]),  # more of class 0 than can be avoided
    ],
    ids=str,
)
def test_balanced_mixes_average_to_target(files, target, mixes):
    """The mean of the mixes is the target as nearly as the caps allow."""
    target = np.array(target)
    caps = np.where([[y in labels for y in range(target.size)] for labels in files], np.inf, 0.0)
    balanced = balance_mixes(target, caps)
    assert balanced.sum(axis=1) == pytest.approx(1.0)
    mixes = np.array(mixes, dtype=float)
    assert balanced == pytest.approx(mixes / mixes.sum(axis=1, keepdims=True), abs=0.02)


@given(st.integers(2, 8), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_balanced_mixes_respect_caps(workers, num_classes, seed):
    rng = np.random.default_rng(seed)
    mixes = rng.dirichlet(np.full(num_classes, 0.5), workers)
    capped = rng.random(mixes.shape) < rng.random()
    balanced = balance_mixes(mixes.mean(axis=0), np.where(capped, mixes, np.inf))
    assert balanced.sum(axis=1) == pytest.approx(1.0)
    assert (balanced >= 0).all()
    assert np.where(capped & ~capped.all(axis=1, keepdims=True), balanced - mixes, 0.0).max() < 1e-9
    assert np.abs(balanced.mean(axis=0) - mixes.mean(axis=0)).sum() / 2 < 0.1  # in one of a hundred more than 0.01


def test_worker_with_only_untargeted_classes():
    assert balance_mixes(np.array([1.0, 0.0]), np.array([[0.0, np.inf], [np.inf, np.inf]]))[1].tolist() == [1.0, 0.0]


def draw_in_turns(files, workers, controller=None, size=6400, **settings):
    """Return the counts and mixes of each turn of the workers, shape ``(turns, workers, K)``."""
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
        pytest.param([[0]] * 4 + [[0, 1]] * 4, 2, marks=pytest.mark.slow),
        ([[0, 1], [1, 2]], 3),
        ([[1, 2], [0, 2], [0, 1]], 3),
        ([[0] * 9 + [1], [1]], 2),
        ([list(range(5)), list(range(10))], 10),
    ],
    ids=str,
)
def test_workers_reach_target_together(files, classes):
    """Workers whose shards differ reach the target together, and no p is small."""
    controller = FeedbackController(classes)
    counts, probs = draw_in_turns(files, len(files), controller)
    share = counts.sum(axis=1) / counts.sum(axis=(1, 2))[0, None, None][0]
    late = share[2 * 16 :]
    assert late.mean(axis=0) == pytest.approx(1 / classes, abs=0.005)
    rows = np.lib.stride_tricks.sliding_window_view(late, 16, axis=0).mean(axis=-1)
    assert np.abs(rows - 1 / classes).max() < 0.025
    # The counts follow the record: no class is off by a whole sample, and none with p = 0 is drawn.
    assert np.abs(counts - 32 * probs).max() < 1 + 1e-6
    assert not counts[probs == 0].any()
    assert probs[2 * 16 :][probs[2 * 16 :] > 0].min() > 1 / (20 * classes)  # q / p is never large


def test_class_missing_in_all_workers():
    """The share of a class that no worker has goes to the others in proportion."""
    controller = FeedbackController(3, [0.2, 0.3, 0.5])
    counts, _ = draw_in_turns([[0, 1]] * 2, 2, controller)
    assert counts.mean(axis=0) / 32 == pytest.approx(np.array([[0.4, 0.6, 0.0]] * 2), abs=0.01)
    counts, _ = draw_in_turns([[0], [0, 1]], 2, controller)
    assert counts[48:].sum(axis=(0, 1)) / counts[48:].sum() == pytest.approx([0.5, 0.5, 0.0], abs=0.01)


def test_balancing_ends_when_class_returns():
    class Late(Files):
        def __iter__(self):
            for number, sample in enumerate(super().__iter__()):
                yield sample if stream_module.get_worker_info().id or number > 3200 else (sample[0], 0)

    source = FairStream(Late([[0, 1], [0, 1]], 9600), FeedbackController(2), batch_size=32, buffer_size=64)
    probs = [[draw.probs[1] for _, (draw, _) in turn] for turn in in_turns(source, 2)]
    assert probs[80] == pytest.approx([0.0, 1.0], abs=0.01)
    assert probs[200] == pytest.approx([0.5, 0.5], abs=0.02)


def test_balancing_ends_with_shard():
    class Ending(Files):
        def __iter__(self):
            return islice(super().__iter__(), None if stream_module.get_worker_info().id else 2000)

    source = FairStream(Ending([[0], [0, 1]], 6400), FeedbackController(2), batch_size=32, buffer_size=64)
    probs = [{worker: draw.probs[1] for worker, (draw, _) in turn} for turn in in_turns(source, 2)]
    assert probs[55] == pytest.approx({0: 0.0, 1: 1.0}, abs=0.01)
    assert probs[100] == pytest.approx({1: 0.5}, abs=0.02)


def test_loss_feedback_while_balancing():
    controller = FeedbackController(2, lambda2=0.5)
    source = FairStream(Files([[0, 1], [0, 1], [0]], 6400), controller, batch_size=32, buffer_size=64)
    controller.loss_score = np.array([-1.0, 1.0])
    source.share()
    last = [[draw.counts[1] for _, (draw, _) in turn] for turn in in_turns(source, 3)][100:190]
    assert np.mean(last, axis=0)[:2] / 32 == pytest.approx(0.86, abs=0.06)  # 0.75 without


@pytest.mark.parametrize("workers", [2, 3])
def test_balancing_is_off_in_turns(monkeypatch, workers):
    """If no worker is short of a class that another could supply, the draws are those of each worker alone."""

    def drawn():
        source = stream(long_tail(2400), FeedbackController(4, TARGET), buffer_size=64, max_reuse=8)
        return [[draw.labels.tolist() for _, (draw, _) in turn] for turn in in_turns(source, workers)]

    balanced = drawn()
    monkeypatch.setattr(FairStream, "_balancing", lambda _: None)
    assert drawn() == balanced


@pytest.mark.slow
@pytest.mark.parametrize("labels", [long_tail(4800), [0] * 2400 + long_tail(2400)], ids=["long tail", "late"])
@pytest.mark.parametrize("workers", [2, 3])
def test_balancing_is_off_for_equal_shards(monkeypatch, labels, workers):
    """If no worker is short of a class that another could supply, each draws as if it were alone."""

    def drawn():
        source = stream(labels, FeedbackController(4, TARGET), buffer_size=64, return_weights=True, max_reuse=8)
        return [torch.stack([x.double() for x in batch]) for batch in DataLoader(source, 8, num_workers=workers)]

    balanced = drawn()
    monkeypatch.setattr(FairStream, "_balancing", lambda _: None)
    alone = drawn()
    assert len(alone) == len(balanced) == 600
    assert all(map(torch.equal, balanced, alone))


@pytest.mark.parametrize("q", [0.5, 0.3])
def test_weight_scale_represents_target(q):
    """The weights w = scale * q / p of all workers together represent the target, class by class."""
    controller = FeedbackController(2, [1 - q, q])
    source = FairStream(Files([[0], [0, 1], [0, 1]], 3200), controller, batch_size=32)
    draws = [draw for turn in in_turns(source, 3) for _, (draw, _) in turn][96:288]
    weights = [draw.weight_reference / np.maximum(draw.probs, 1e-9) for draw in draws]
    risks = [w * draw.counts / 32 for w, draw in zip(weights, draws, strict=True)]
    assert np.mean(risks, axis=0) == pytest.approx([1 - q, q], abs=0.02)
    assert any(draw.weight_scale is not None for draw in draws)


@pytest.mark.slow
@pytest.mark.parametrize("q", [0.5, 0.3])
def test_weighted_losses_represent_target(q):
    """Each class has its own loss, so the mean of mean(w * loss) over all batches shows the mix they represent."""
    controller = FeedbackController(2, [1 - q, q])
    source = FairStream(Files([[0], [0, 1], [0, 1]], 3200), controller, batch_size=32, return_weights=True)
    batches = [(y, w) for _, y, w in DataLoader(source, batch_size=32, num_workers=3)][96:288]
    risks = [torch.zeros(2).index_add_(0, y, w) / 32 for y, w in batches]
    assert torch.stack(risks).mean(dim=0).tolist() == pytest.approx([1 - q, q], abs=0.02)
    assert torch.cat([y for y, _ in batches]).double().mean() == pytest.approx(q, abs=0.02)
    assert max(w.max().item() for _, w in batches) < 2.0


def published(table, worker, stock, *, iteration=1.0, draws=16, horizon=16.0):
    """Return the link of a worker that has published some draws of 8 samples from this stock of two classes."""
    balancing, stock = WorkerBalancing(table, worker, 2, iteration, horizon), np.array(stock)
    for _ in range(draws):
        balancing.publish(stock, 8, np.array([0.5, 0.5]), stock / stock.sum())
    return balancing


def test_only_active_workers_count():
    """Rows of workers that have left, or of another iteration, are ignored."""
    q = np.array([0.5, 0.5])
    table = np.zeros(WorkerBalancing.table_shape(2))
    one, other = published(table, 0, [9, 0]), published(table, 1, [9, 9])
    assert other.target_mix(q).mix.tolist() == [0.0, 1.0]
    assert one.target_mix(q).mix[0] == pytest.approx(2 / 3)  # it keeps asking for class 1
    assert [one.is_first, other.is_first] == [True, False]
    one.leave()
    assert other.target_mix(q) is None
    assert other.is_first
    published(table, 0, [9, 0])
    restarted = published(table, 1, [9, 9], iteration=2.0)  # the row of worker 0 is of an earlier iteration
    assert restarted.target_mix(q) is None
    other.leave()  # without effect: its row belongs to the later iteration
    published(table, 0, [9, 0], iteration=2.0)
    assert restarted.target_mix(q) is not None


def test_balancing_waits_for_a_horizon():
    table = np.zeros(WorkerBalancing.table_shape(2))
    other = published(table, 1, [9, 9])
    one = published(table, 0, [9, 0], draws=15)
    assert other.target_mix(np.array([0.5, 0.5])) is None
    one.publish(np.array([9, 0]), 8, np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    assert other.target_mix(np.array([0.5, 0.5])) is not None


@pytest.mark.slow
def test_more_workers_than_table_rows():
    """With more workers than rows in the table, each draws for itself."""
    assert WorkerBalancing.table_shape(2) == (64, 7)
    rows, width = WorkerBalancing.table_shape(100_000)
    assert rows == 3
    assert rows * width <= 2**20
    counts, _ = draw_in_turns([[0]] + [[0, 1]] * 64, 65, size=640)
    assert counts[-1, 1:].mean(axis=0) == pytest.approx([16, 16], abs=2)
