import io
import random
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from control_helpers import OPERATIONS
from hypothesis import given
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, TensorDataset

from lightning_fair import FeedbackBatchSampler, FeedbackController, importance_weights
from lightning_fair.common.labels import find_labels
from lightning_fair.schedules import Join, Linear, Shift, Step

LABELS = np.repeat([0, 1, 2], [90, 25, 5])


def make(labels=LABELS, batch_size=12, steps=10, *, feedback_delay=1, alpha=8.0, lambda2=0.0, target=None, **settings):
    """Return a batch sampler with a controller of its own."""
    of_law = {"alpha": alpha, "lambda2": lambda2, "feedback_delay": feedback_delay}
    controller = FeedbackController(int(np.max(np.asarray(labels))) + 1, target, **of_law)
    return FeedbackBatchSampler(labels, batch_size, steps, controller, **settings)


# -- shape of an epoch ---------------------------------------------------------------------------------


def test_epoch_has_full_batches():
    sampler = make(steps=7)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 7
    assert {len(batch) for batch in batches} == {12}
    assert isinstance(sampler, Sampler)
    assert all(type(index) is int for index in batches[0])


@pytest.mark.parametrize(("batch_size", "ranks", "expected"), [(12, 1, 10), (50, 1, 3), (7, 2, 9), (500, 1, 1)])
def test_default_epoch_is_one_pass(batch_size, ranks, expected):
    assert len(make(batch_size=batch_size, steps=None, world_size=ranks)) == expected


def test_batch_is_shuffled():
    firsts = {int(LABELS[batch[0]]) for batch in make(steps=30)}
    assert firsts == {0, 1, 2}


def test_default_target_is_uniform():
    """The target is uniform over the classes that have samples."""
    sampler = FeedbackBatchSampler([0, 0, 0, 3, 3, 3, 3, 3], batch_size=4)
    np.testing.assert_allclose(sampler.controller.q, [0.5, 0.0, 0.0, 0.5])
    assert sampler.class_counts.tolist() == [3, 0, 0, 5]


def test_seed_decides_batches():
    assert list(make(seed=3)) == list(make(seed=3))
    assert list(make(seed=3)) != list(make(seed=4))


def test_next_epoch_has_new_batches():
    sampler = make(steps=4)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sampler.drawn.sum() == 3 * 4 * 12
    assert sampler.drawn.tolist() == [48, 48, 48]


def test_schedule_follows_epoch():
    controller = FeedbackController(3, alpha=Linear(0.0, 8.0, 4, unit="epoch"))
    sampler = FeedbackBatchSampler(LABELS, 12, 2, controller)
    gains = []
    for _ in range(3):
        for _ in sampler:
            gains.append(controller.in_flight[-1].alpha)
            controller.step_update(LABELS[:12])
    assert gains == [0.0, 0.0, 2.0, 2.0, 4.0, 4.0]
    sampler.set_epoch(1)
    next(iter(sampler))
    assert (sampler.epoch, controller.in_flight[-1].alpha) == (1, 2.0)


def test_coverage_and_repeats():
    sampler = make(steps=5)
    assert sampler.coverage == 0.0
    for batch in sampler:
        assert sampler.trained.sum() == sampler.drawn.sum() - len(batch)  # this one is in flight
        sampler.controller.step_update(sampler.labels[batch])
    assert sampler.drawn.tolist() == sampler.trained.tolist() == [20, 20, 20]
    assert sampler.coverage == pytest.approx((20 + 20 + 5) / 120)
    assert sampler.repeats.tolist() == pytest.approx([20 / 90, 20 / 25, 4.0])
    empty = FeedbackBatchSampler([0, 2, 2], 2)
    assert np.isnan(empty.repeats[1])


# -- draws in flight -----------------------------------------------------------------------------------


def test_deliver_returns_draw_of_batch():
    sampler = make(steps=6)
    batches = list(sampler)
    for draw_id, batch in enumerate(batches):
        record = sampler.deliver()
        assert record.draw_id == draw_id
        assert record.labels.tolist() == LABELS[batch].tolist()
        assert record.counts.tolist() == np.bincount(LABELS[batch], minlength=3).tolist()
        assert sampler.controller.get_probs().tolist() == record.probs.tolist()
        sampler.report(record)
    with pytest.raises(RuntimeError, match=r"delivered a batch that was not drawn"):
        sampler.deliver()


def test_abandoned_draws_are_not_repeated():
    """Draws of an abandoned iteration count as trained on unless they are withdrawn."""
    sampler = make(steps=6)
    first = [batch for batch, _ in zip(sampler, range(4), strict=False)]
    second = list(sampler)
    assert len(second) == 6
    assert not any(batch in second for batch in first)
    assert len(sampler.controller.in_flight) == 6


def ahead(sampler, num_prefetched, deliver, losses=None):
    """Take ``deliver`` batches of a loader that draws ``num_prefetched`` ahead; report each. Return (p, batch)s."""
    drawn, delivered, batches = [], [], iter(sampler)
    while len(delivered) < deliver:
        while len(drawn) < num_prefetched + 1 and (batch := next(batches, None)) is not None:
            drawn.append(batch)
        batch = drawn.pop(0)
        delivered.append((sampler.controller.get_probs().tolist(), batch))
        y = np.asarray(sampler.labels)[batch]
        sampler.controller.step_update(y, None if losses is None else losses(batch))
    return delivered


def hardness(batch):
    """A loss that is a function of the batch alone, and differs between classes and items."""
    index = np.asarray(batch)
    return (1.0 + LABELS[index]) * (1.0 + np.sin(index.sum() + index))


def test_withdrawn_draws_come_first():
    sampler, whole = make(seed=1), make(seed=1)
    expected = ahead(whole, 9, 10)
    for number in (4, 2):  # abandoned once, and once more while some are still to be replayed
        batches = iter(sampler)
        drawn = [next(batches) for _ in range(number)]
        assert [(d.probs.tolist(), b) for d, b in zip(sampler.controller.in_flight[:number], drawn, strict=True)] == (
            expected[:number]
        )
        sampler.withdraw()
        assert sampler.controller.in_flight == ()
    assert ahead(sampler, 9, 10) == expected


@pytest.mark.parametrize("lambda2", [0.0, 0.5])
def test_cut_run_is_uninterrupted_run(lambda2):
    num_prefetched = 2
    whole, cut = (make(steps=30, feedback_delay=num_prefetched + 1, lambda2=lambda2, seed=2) for _ in range(2))
    expected = ahead(whole, num_prefetched, 30, hardness)
    got = []
    for number in (4, 1, 25):
        got += ahead(cut, num_prefetched, number, hardness)
        cut.withdraw()
    assert got == expected
    assert cut.drawn.tolist() == np.bincount(LABELS[np.concatenate([b for _, b in got])]).tolist()


def test_withdrawal_keeps_items_fair():
    sampler = make(steps=50, batch_size=7)
    uses = np.zeros(LABELS.size, dtype=int)
    rng = np.random.default_rng(0)
    for _ in range(15):
        for _, batch in ahead(sampler, int(rng.integers(0, 5)), int(rng.integers(1, 6))):
            uses += np.bincount(batch, minlength=LABELS.size)
            assert all(np.ptp(uses[label == LABELS]) <= 1 for label in range(3))
        sampler.withdraw()


def test_cut_epoch_continues():
    sampler = make(steps=6)
    batches = iter(sampler)
    for _ in range(4):
        next(batches)
    for _ in range(3):
        sampler.report(sampler.deliver())
    sampler.withdraw()
    assert len(list(sampler)) == 3
    assert sampler.epoch == 0
    sampler.end_epoch()
    assert len(list(sampler)) == 6
    assert sampler.epoch == 1


def test_empty_withdrawal_changes_nothing():
    sampler, other = make(), make()
    sampler.withdraw()
    assert list(sampler) == list(other)


# -- resume (law 5) ------------------------------------------------------------------------------------


def run_on(sampler, batches, number, num_prefetched=2):
    """Draw ``num_prefetched`` ahead, report ``number``; return the draw of each."""
    got, waiting = [], []
    for _ in range(number):
        while len(waiting) < num_prefetched + 1 and (batch := next(batches, None)) is not None:
            waiting.append(batch)
        batch, record = waiting.pop(0), sampler.deliver()
        losses = hardness(batch)
        sums = np.bincount(LABELS[batch], weights=losses, minlength=3)
        got.append((record.draw_id, batch, record.probs.tolist(), record.counts.tolist()))
        sampler.report(record, None, sums, record.counts)
    return got


def plain_loop(sampler, number):
    """Take ``number`` batches in a plain loop over epochs; return the epoch and the indices of each."""
    batches = ((sampler.epoch, batch) for _ in range(number) for batch in sampler)
    for epoch, batch in islice(batches, number):
        sampler.controller.step_update(LABELS[batch], hardness(batch))
        yield epoch, batch


@pytest.mark.parametrize("stop", range(13))
def test_captured_state_continues_plain_loop(stop):
    """A plain loop continues within its epoch, also after an epoch's last batch."""
    schedule = Linear(0.0, 8.0, 3, unit="epoch")
    whole, cut, other = (make(steps=4, lambda2=0.5, alpha=schedule) for _ in range(3))
    expected, got = list(plain_loop(whole, 12)), list(plain_loop(cut, stop))
    other.restore(cut.capture())
    assert got + list(plain_loop(other, 12 - stop)) == expected
    assert other.capture()["position"] == 4


def test_other_batches_do_not_shorten_epoch():
    """Batches that are reported to the controller, but were not drawn, are none of the epoch."""
    sampler = make(steps=4)
    for _ in range(3):
        sampler.controller.step_update([0, 1, 1])
    assert sum(1 for _ in plain_loop(sampler, 6)) == 6
    assert (sampler.epoch, sampler.capture()["position"]) == (1, 2)


@pytest.mark.parametrize("stop", [0, 1, 5, 8, 9])
def test_captured_state_continues_exactly(stop):
    settings = {"steps": 9, "feedback_delay": 3, "lambda2": 0.5, "seed": 5}
    whole = make(**settings)
    expected = run_on(whole, iter(whole), 9)
    cut = make(**settings)
    got = run_on(cut, iter(cut), stop)
    file = io.BytesIO()
    torch.save(cut.capture(), file)
    file.seek(0)
    other = make(**settings)
    other.restore(torch.load(file, weights_only=True))
    got += run_on(other, iter(other), 9 - stop)
    assert got == expected
    for each in (whole, other):
        each.end_epoch()
    assert run_on(other, iter(other), 9) == run_on(whole, iter(whole), 9)
    assert other.epoch == whole.epoch == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, r"made with seed = 5, this run has 6\. Resume with the same data set and settings"),
        ({"batch_size": 6}, r"batch size = 12, this run has 6"),
        ({"labels": LABELS[:-1]}, r"number of samples = 120, this run has 119"),
        ({"labels": LABELS[LABELS < 2].repeat(2)[:120]}, "number of classes = 3, this run has 1"),
    ],
)
def test_state_of_other_run_is_refused(change, message):
    state = make(seed=5).capture()
    other = make(**{"seed": 5, **change})
    with pytest.raises(ValueError, match=message):
        other.restore(state)
    assert list(other) == list(make(**{"seed": 5, **change}))
    with pytest.raises(ValueError, match=r"reads state version \d+, got 99"):
        other.restore({**state, "version": 99})


# -- ranks (law 6) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [None, 1])
def test_unknown_ranks_are_warned_about(world_size, monkeypatch, recwarn):
    """Without ``world_size``, a sampler in several processes warns once that all of them draw the same samples."""
    sampler = FeedbackBatchSampler([0, 0, 0, 1], batch_size=2, world_size=world_size)
    list(sampler)
    assert not recwarn.list
    monkeypatch.setattr("lightning_fair.common.distributed.count_ranks", lambda: 2)
    list(sampler)
    list(sampler)
    assert ["2 processes" in str(warning.message) for warning in recwarn] == [True] * (world_size is None)


def test_report_of_one_rank_is_warned_about(recwarn):
    """If a batch of several ranks is reported with the labels of one rank, one warning says so; else there is none."""
    labels = np.array([0] * 30 + [1] * 10)
    samplers = [FeedbackBatchSampler(labels, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    for batches in zip(*samplers, strict=True):
        samplers[0].controller.step_update(labels[batches[0] + batches[1]])
    assert not recwarn.list
    samplers[0].controller.step_update([])  # a skipped step
    for batch in samplers[0]:
        samplers[0].controller.step_update(labels[batch])
    assert ["4 samples" in str(warning.message) for warning in recwarn] == [True]


def test_ranks_compare_numpy():
    """Another version may draw other random numbers."""
    assert FeedbackBatchSampler([0, 1], 2).rank_facts()["version of NumPy"] == np.__version__


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_batch_of_one_process(world_size):
    alone = make(batch_size=12)
    ranks = [make(batch_size=12 // world_size, steps=10, rank=r, world_size=world_size) for r in range(world_size)]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert {len(part) for part in parts} == {12 // world_size}
        assert sorted(np.concatenate(parts).tolist()) == sorted(one)
        for label in range(3):
            shares = [int((LABELS[part] == label).sum()) for part in parts]
            assert max(shares) - min(shares) <= 1
    assert all(np.array_equal(r.controller.trained_mix, alone.controller.trained_mix) for r in ranks)


# -- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "world_size": 2}, r"rank must lie in \[0, world_size\), got 2 for 2 ranks"),
    ],
)
def test_bad_argument_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], r"data set is empty"),
        ([[0, 1], [1, 2]], r"labels must have shape \(N,\).*labels=\[tuple\(row\)"),
        (np.zeros((2, 5, 5)), r"Of masks"),
        ([0.0, 0.5], r"labels must be whole numbers or names, got 0\.5 for sample 1"),
        ([0, 2], r"labels must lie in \[0, 2\), got 2\. State num_classes=3 or more"),
        ([0, -1], r"labels must be at least 0, got -1"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        FeedbackBatchSampler(labels, 2, controller=FeedbackController(2))


def test_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match=r"Stream is a stream"):
        FeedbackBatchSampler(Stream(), 2)


def test_empty_class_is_refused():
    with pytest.raises(
        ValueError, match=r'No samples of class 1, 3, but .*Set their target to 0.*empty_classes="skip"'
    ):
        FeedbackBatchSampler([0, 2], 2, controller=FeedbackController(4))
    with pytest.raises(ValueError, match=r"No samples of class 1, 2, 3, 4, 5, \.\.\., but"):
        FeedbackBatchSampler([0, 0], 2, controller=FeedbackController(9))
    lengths = [("a", "b", length) for length in (0, 9, 9)]
    with pytest.raises(ValueError, match=r"class 1, 2, .* \(the labels come from element 2 of the samples\), but"):
        FeedbackBatchSampler(find_labels(lengths, num_classes=12), 2, controller=FeedbackController(12))


def test_untargeted_class_can_be_empty():
    sampler = FeedbackBatchSampler([0, 2], 2, 1, FeedbackController(3, [0.5, 0.0, 0.5]))
    assert sorted(next(iter(sampler))) == [0, 1]


def test_skip_shares_target_in_proportion():
    controller = FeedbackController(4, [0.4, 0.3, 0.2, 0.1])
    labels = np.array([0] * 30 + [2] * 30)
    sampler = FeedbackBatchSampler(labels, 30, 20, controller, empty_classes="skip")
    np.testing.assert_allclose(controller.q, [2 / 3, 0.0, 1 / 3, 0.0])
    for batch in sampler:
        assert np.bincount(labels[batch], minlength=4).tolist() == [20, 0, 10, 0]


def test_skipping_every_class_is_refused():
    with pytest.raises(ValueError, match=r"Every class with a target lacks samples"):
        FeedbackBatchSampler([0, 0], 2, controller=FeedbackController(2, [0.0, 1.0]), empty_classes="skip")


# -- in a loop -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("with_losses", [False, True])
def test_quick_start_runs(kind, with_losses):
    K = 4
    generator = torch.Generator().manual_seed(0)
    y_all = np.random.default_rng(0).choice(K, 2000, p=[0.9, 0.05, 0.03, 0.02])
    x = torch.randn(2000, 8, generator=generator) + 2.0 * torch.eye(8)[y_all]
    labels = torch.as_tensor(y_all) if kind == "tensor" else y_all
    model = torch.nn.Linear(8, K)
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    before = criterion(model(x), torch.as_tensor(y_all)).mean().item()

    controller = FeedbackController(num_classes=K, target_probs=[1 / K] * K, alpha=8.0)
    sampler = FeedbackBatchSampler(labels, batch_size=256, steps_per_epoch=100, controller=controller)
    for batch_indices in sampler:
        y = labels[batch_indices]
        p = controller.get_probs()
        w = importance_weights(y, controller.q, p)
        losses = criterion(model(x[batch_indices]), torch.as_tensor(y))
        loss = (w * losses).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        controller.step_update(y, losses=losses if with_losses else None)

    assert sampler.drawn.tolist() == [6400] * 4
    assert controller.in_flight == ()
    assert criterion(model(x), torch.as_tensor(y_all)).mean().item() < before
    assert np.isfinite(controller.ema_loss).all() == with_losses


def test_losses_with_gradient_are_accepted():
    labels = np.repeat([0, 1], [95, 5])
    x = torch.linspace(-1.0, 1.0, 100)[:, None]
    model, criterion = torch.nn.Linear(1, 2), torch.nn.CrossEntropyLoss(reduction="none")
    controller = FeedbackController(num_classes=2, lambda2=0.3)
    for batch_indices in FeedbackBatchSampler(labels, batch_size=16, steps_per_epoch=5, controller=controller):
        y = labels[batch_indices]
        controller.step_update(y, losses=criterion(model(x[batch_indices]), torch.as_tensor(y)))
    assert np.isfinite(controller.ema_loss).all()


def test_data_loader_accepts_sampler():
    data = TensorDataset(torch.arange(120), torch.as_tensor(LABELS))
    sampler = FeedbackBatchSampler(data, 12, 10, FeedbackController(3))
    loader = DataLoader(data, batch_sampler=sampler)
    assert len(loader) == 10
    assert [x.tolist() for x, _ in loader] == list(make())
    assert not isinstance(sampler, BatchSampler)  # which would want a sampler of its own


# -- manners -------------------------------------------------------------------------------------------


def test_global_random_state_is_untouched():
    def states():
        name, key, *rest = np.random.get_state()  # noqa: NPY002
        return (name, key.tolist(), *rest), random.getstate(), torch.get_rng_state().tolist()

    before = states()
    sampler = make(lambda2=0.5)
    for batch in sampler:
        importance_weights(LABELS[batch], sampler.controller.q, sampler.controller.get_probs())
        sampler.controller.step_update(LABELS[batch], hardness(batch))
    sampler.withdraw()
    assert states() == before


def test_global_random_state_is_ignored():
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    first = list(make())
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert list(make()) == first


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import sys, lightning_fair; "
        "print(*{'lightning', 'pytorch_lightning', 'hydra', 'gradio', 'torchvision', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# -- replay --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback_delay", [1, 6])
@given(operations=OPERATIONS)
def test_replayed_draws_are_unchanged(feedback_delay, operations):
    """Whatever is reported, in any order, a draw that is made once more is the draw that was made first."""
    sampler = FeedbackBatchSampler(
        LABELS, 8, 11, FeedbackController(3, lambda2=0.5, horizon=40, feedback_delay=feedback_delay), seed=3
    )
    batches, delivered, drawn = iter(sampler), [], {}
    for name, place in operations:
        if name == "draw" and (batch := next(batches, None)) is not None:
            draw = sampler.deliver()
            delivered.append(draw)
            values = batch, draw.probs.tolist(), draw.counts.tolist(), draw.alpha
            assert drawn.setdefault(draw.draw_id, values) == values
            assert draw.labels.tolist() == LABELS[batch].tolist()
        elif name == "report" and delivered:
            draw = delivered.pop(place % len(delivered))
            losses = draw.counts * (1.0 + np.arange(3)) * (1 + draw.draw_id % 3)
            sampler.report(draw, draw.counts, losses, draw.counts)
        elif name in ("withdraw", "abandon", "resume"):
            if name == "withdraw":
                sampler.withdraw()
            elif name == "resume":
                state = sampler.capture()
                sampler.reset()
                sampler.restore(state)
            batches, delivered = iter(sampler), []


def test_out_of_order_report_survives_withdrawal():
    """Draws 1 and 2 are trained on before draw 0. After the withdrawal only draw 0 is repeated."""
    sampler, whole = make(steps=6), make(steps=6)
    expected = list(whole)
    batches = iter(sampler)
    for _ in range(3):
        next(batches)
    draws = [sampler.deliver() for _ in range(3)]
    for draw in draws[1:]:
        sampler.report(draw)
    state = sampler.capture()
    sampler.withdraw()
    assert list(sampler) == [expected[0], *expected[3:]]
    assert sampler.drawn.tolist() == whole.drawn.tolist()
    resumed = make(steps=6)
    resumed.restore(state)
    assert list(resumed) == [expected[0], *expected[3:]]


def test_delivered_draws_can_stay_in_flight():
    sampler = make(steps=4)
    batches = iter(sampler)
    next(batches)
    draw = sampler.deliver()
    sampler.withdraw(undelivered_only=True)
    assert len(list(sampler)) == 3
    assert sampler.controller.oldest is draw


def test_reset_starts_over():
    sampler = make(steps=5)
    first = list(sampler)
    sampler.withdraw()
    next(iter(sampler))
    sampler.reset()
    assert list(sampler) == first
    assert sampler.epoch == 0


# -- schedules by epoch, and epochs that are cut short -------------------------------------------------

BY_EPOCH = {
    "target": {"target_probs": Shift(Linear(0.0, 1.0, 3, unit="epoch"), start=[0.8, 0.2, 0.0]), "lambda2": 0.5},
    "gain": {"alpha": Linear(0.0, 8.0, 3, unit="epoch"), "lambda2": 0.5},
    "target, losses to the objective": {
        "target_probs": Shift(Step(0.0, 1.0, at=1, unit="epoch"), start=[0.8, 0.1, 0.1]),
        "feedback_to": "objective",
        "reference": "uniform",
        "lambda2": 0.5,
    },
    "target, validation to the objective": {
        "target_probs": Shift(Step(0.0, 1.0, at=2, unit="epoch"), start=[0.8, 0.2, 0.0]),
        "feedback": "validation",
        "feedback_to": "objective",
    },
    "target by both clocks, validation to the draw": {
        "target_probs": Shift(Join([Linear(0.0, 0.5, 9), Linear(0.5, 1.0, 4, unit="epoch")], [2], unit="epoch")),
        "class_counts": np.bincount(LABELS),
        "feedback": "validation",
        "lambda2": 0.3,
    },
}


def train_epochs(settings, lengths, leads, cuts=()):
    """Train on epochs of some of their 9 batches, with a loader that draws ahead; return the draw of each batch.

    After the batches ``cuts``, go on with a new sampler from the saved state, and with the next of the ``leads``.
    """

    def make():
        controller = FeedbackController(3, horizon=16, feedback_delay=6, **settings)
        return FeedbackBatchSampler(LABELS, 8, 9, controller, seed=4)

    def begin(sampler, *, within_epoch):
        sampler.start_iteration(sampler.epoch, within_epoch=within_epoch, keep_delivered=False)
        return iter(sampler)

    leads, sampler, got = iter(leads), make(), []
    lead = next(leads)
    for length in lengths:
        batches, num_ahead = begin(sampler, within_epoch=False), 0
        for position in range(1, length + 1):
            while num_ahead <= lead and next(batches, None) is not None:
                num_ahead += 1
            draw, num_ahead = sampler.deliver(), num_ahead - 1
            got.append((draw.draw_id, draw.indices, draw.probs.tolist(), draw.reference.tolist(), draw.alpha))
            trained = draw.counts - (np.arange(3) == draw.draw_id % 3) * (draw.counts > 1)  # a sample is left out
            sampler.report(draw, trained, trained * (1.0 + np.sin(draw.draw_id + np.arange(3))), trained)
            if settings.get("feedback") == "validation" and position in (2, length):
                sampler.controller.report_validation([0.9, 0.5, 0.1 * (len(got) % 7)])
            if len(got) in cuts:
                state, sampler, lead = sampler.capture(), make(), next(leads)
                sampler.restore(state)
                batches, num_ahead = begin(sampler, within_epoch=True), 0
        sampler.end_epoch()
    return got


@pytest.mark.filterwarnings("ignore:Feedback moves the draw")
@pytest.mark.parametrize("settings", BY_EPOCH.values(), ids=BY_EPOCH)
def test_short_epochs_do_not_depend_on_the_lead(settings):
    """Draws made ahead for an epoch that ends before them are made for the next one, also after a resume.

    So neither the number of batches drawn ahead changes the batches, nor a resume with another number.
    """
    rng = np.random.default_rng(0)
    for lengths in ((3, 5, 1, 9, 4), (5, 5, 5, 5)):
        expected = train_epochs(settings, lengths, [0])
        assert np.ptp([p for _, _, p, *_ in expected], axis=0).max() > 0.02
        for lead in (1, 3, 5):
            assert train_epochs(settings, lengths, [lead]) == expected
        ends = np.cumsum(lengths).tolist()
        for cuts in (ends, [end - 1 for end in ends], *(rng.choice(20, 5).tolist() for _ in range(3))):
            leads = rng.integers(0, 6, 1 + len(cuts)).tolist()
            assert train_epochs(settings, lengths, leads, cuts) == expected, (lengths, leads, cuts)


def test_overtaken_draw_keeps_its_epoch():
    """A draw that a later one has overtaken is made again unchanged, also in another epoch; newer ones follow it."""
    controller = FeedbackController(3, alpha=Linear(0.0, 8.0, 4, unit="epoch"))
    sampler = FeedbackBatchSampler(LABELS, 8, 11, controller)
    first = list(islice(sampler, 4))
    sampler.report(controller.in_flight[1])
    sampler.withdraw()
    sampler.end_epoch()
    assert next(islice(sampler, 2, None))
    assert controller.in_flight[0].indices == first[0]
    assert [(draw.draw_id, draw.alpha) for draw in controller.in_flight] == [(0, 0.0), (2, 2.0), (3, 2.0)]


@pytest.mark.parametrize(
    ("moving", "gain", "progress"),
    [
        ({"alpha": Linear(0.0, 8.0, 4, unit="epoch")}, 2.0, 0.0),
        ({"target_probs": Shift(Step(0.0, 1.0, at=1, unit="epoch"), start=[0.8, 0.1, 0.1])}, 8.0, 1.0),
    ],
    ids=["gain", "target"],
)
def test_draw_follows_early_epoch_end(moving, gain, progress):
    sampler = FeedbackBatchSampler(LABELS, 8, 11, FeedbackController(3, feedback_delay=16, **moving))
    next(iter(sampler))
    assert len(sampler.controller.in_flight) == 1
    sampler.end_epoch()
    next(iter(sampler))
    newest = sampler.controller.in_flight[-1]
    assert (newest.draw_id, newest.alpha, newest.progress) == (1, gain, progress)
