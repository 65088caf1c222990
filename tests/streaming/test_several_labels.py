"""Streams whose samples have several labels, or none: their labels, draws, weights and memory."""

import logging
import weakref
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stream_runs import Files, held_samples, in_turns
from torch.utils.data import DataLoader, IterableDataset

from lightning_fair import FairStream, FeedbackController, schedules
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.label_draws import RestingDraw
from lightning_fair.dataloaders.stream_tracker import StreamTracker

NAMES = ["person", "car", "dog", "none"]


def label_rows(size, seed=0):
    """Return rows of four labels: 2 comes with 1 alone, and 3 is rare; a sample without any of 0 to 2 has 3."""
    rows = np.random.default_rng(seed).random((size, 4)) < [0.6, 0.25, 0.08, 0.02]
    rows[:, 1] |= rows[:, 2]
    rows[:, 3] |= ~rows.any(axis=1)
    return rows


def stream(rows, controller=None, **settings):
    """Return a stream of ``(position, row)``."""
    controller = controller or FeedbackController(4)
    settings = {"batch_size": 16, "several_labels": True, **settings}
    return FairStream(list(enumerate(np.asarray(rows))), controller, **settings)


def labels_of(value, controller=None, **settings):
    """Return the row of a sample whose label this is."""
    controller = controller or FeedbackController(4)
    source = FairStream([(0, value)], controller, batch_size=1, several_labels=True, **settings)
    ((draw, _),) = source.batches()
    return draw.labels[0].astype(int).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, [0.1, 0.2, 0.3, 0.4]], ids=["uniform", "vector"])
def test_labels_have_the_target_that_can_be_reached(target):
    rows = label_rows(24_000)
    controller = FeedbackController(4, target)
    best = RestingDraw(controller.target_at(0.0), LabelSets.from_matrix(rows).cooccurrence())
    total = np.zeros(4)
    for number, (draw, samples) in enumerate(stream(rows, controller).batches()):
        np.testing.assert_array_equal(draw.labels, rows[[item for item, _ in samples]])
        np.testing.assert_array_equal(draw.counts, draw.labels.sum(axis=0))
        total += draw.counts * (number >= 100)
    np.testing.assert_allclose(total / total.sum(), best.labels, rtol=0.04)
    np.testing.assert_allclose(draw.resting[0, 1], best.labels, rtol=0.02)
    assert np.abs(best.labels / rows.mean(axis=0) * rows.mean(axis=0).sum() - 1.0).max() > 1.0  # far from the data's


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["target", "uniform"])
@pytest.mark.parametrize("workers", [0, 2])
def test_weighted_mean_is_unbiased(workers, reference):
    """The mean of `w f` is the sum of `ref(x) f(x)` over all samples, within 4 standard errors of 1,500 batches.

    Its first batches are left out: they have the counts of few samples.
    """
    rows = label_rows(26_000)
    f = rows @ [-1.0, 0.5, 1.0, 2.0]
    sets = LabelSets.from_matrix(rows)
    controller = FeedbackController(4, [0.1, 0.2, 0.3, 0.4], reference=reference, max_weight=np.inf)
    mix = RestingDraw(np.array([0.1, 0.2, 0.3, 0.4]), sets.cooccurrence()).mix if reference == "target" else 0.25
    share = sets.sums(mix / sets.counts)
    source = stream(rows, controller, return_weights=True, buffer_size=64)
    means, plain = [], []
    for items, _, w in DataLoader(source, batch_size=16, num_workers=workers):
        means.append(float((w.double().numpy() * f[items.numpy()]).mean()))
        plain.append(f[items.numpy()].mean())
    means = means[125:]
    error = np.std(means) / np.sqrt(len(means))
    assert np.mean(means) == pytest.approx(share @ f, abs=4.0 * error)
    assert abs(share @ f - f.mean()) > 10.0 * error  # as if all samples were weighted equally
    assert reference == "target" or abs(share @ f - np.mean(plain)) > 10.0 * error  # as without weights


def test_weights_are_those_of_the_formula():
    """`w = (sum of m_k / n_k) / (sum of p_k / n_k)` over the labels of a sample, with what has been read so far."""
    rows = label_rows(800)
    controller = FeedbackController(4, [0.1, 0.2, 0.3, 0.4], max_weight=1.5)
    read = 0
    for draw, samples in stream(rows, controller, return_weights=True).batches(in_flight=True):
        read += draw.num_read
        n = rows[:read].sum(axis=0)
        for _, row, weight in samples:
            wanted, drawn = ((mix[row] / n[row]).sum() for mix in (draw.reference, draw.probs))
            assert weight == pytest.approx(min(wanted / drawn, 1.5), rel=1e-5)
        controller.report(draw.counts, draw=draw)
    assert read == 800


@pytest.mark.parametrize(
    ("value", "row"),
    [
        (torch.tensor([0.0, 1.0, 1.0, 0.0]), [0, 1, 1, 0]),
        (np.array([True, False, False, True]), [1, 0, 0, 1]),
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ((1, 1, 1, 1), [1, 1, 1, 1]),
        ([0, 1], [1, 1, 0, 0]),
        ([3, 0, 3], [1, 0, 0, 1]),
        ({2}, [0, 0, 1, 0]),
        (frozenset({0, 2}), [1, 0, 1, 0]),
        (torch.tensor([2, 0]), [1, 0, 1, 0]),
        (np.array(["dog", "car"]), [0, 1, 1, 0]),
        (["car", 0], [1, 1, 0, 0]),
        ("dog", [0, 0, 1, 0]),
        (1, [0, 1, 0, 0]),
        ([], [0, 0, 0, 1]),
        (set(), [0, 0, 0, 1]),
        (torch.zeros(0), [0, 0, 0, 1]),
        (torch.zeros(3), [0, 0, 0, 1]),
        ([1, 0, 1], [1, 0, 1, 0]),
        (torch.zeros(4), [0, 0, 0, 1]),
    ],
    ids=repr,
)
def test_labels_in_any_form(value, row):
    assert labels_of(value, class_names=NAMES) == row
    assert labels_of(value, class_names=NAMES[:3]) == row  # the class without a name is that of samples without labels


def test_names_of_the_source():
    class Source(list):
        pass

    source = Source([{"labels": ["dog"]}, {"labels": []}, {"labels": [1, 0]}])
    source.features = {"labels": SimpleNamespace(feature=SimpleNamespace(names=NAMES[:3]))}
    fair = FairStream(source, FeedbackController(4), batch_size=3, several_labels=True)
    assert fair.classes == NAMES
    for draw, samples in fair.batches():
        rows = [row for sample in samples for row in [labels_of(sample["labels"], class_names=NAMES)]]
        assert draw.labels.astype(int).tolist() == rows


@pytest.mark.parametrize(
    ("value", "match", "remedy"),
    [
        ([], r"no label, and no class stands for that\..*num_classes=5, and FairStream\(class_names=", {"num": 5}),
        (np.zeros(4), r"no label, and no class stands for that", {"num": 5}),
        ([0, 1, 0], r"row of 4 zeros and ones.* got \[0, 1, 0\].*Set num_classes to the number", {"num": 3}),
        ([True, False], r"row of 4 zeros and ones.* got \[True, False\]", {"num": 2}),
        ([0, 1, 0], r"one more if the last class is that of samples without a label", {"class_names": NAMES}),
        (np.array([1.0, 0.5, 0.0, 1.0]), r"got \[1\.0, 0\.5, 0\.0, 1\.0\].*label_fn", {"label_fn": "== 1"}),
        (np.array([1.0, np.nan, 0.0, 1.0]), r"got \[1\.0, nan, .*label_fn", {"label_fn": "== 1"}),
        (torch.tensor([1, -1, 0, 1]), r"got \[1, -1, 0, 1\].*label_fn", {"label_fn": "== 1"}),
        ([0, 4], r"labels must lie in \[0, 4\), got 4 in the stream\. Set num_classes=5 or more", {"num": 5}),
        ([[0, 1, 0, 1]], r"got shape \(1, 4\).*single samples", {"label_fn": "[0]"}),
    ],
)
def test_wrong_labels_raise(value, match, remedy):
    """With the remedy in the message, each is read."""
    with pytest.raises(ValueError, match=match):
        labels_of(value)
    function = remedy.get("label_fn")
    settings = {"label_fn": lambda sample: eval(f"value {function}", {"value": sample[1]})} if function else {}
    K = remedy.get("num", 4)
    names = [*"abcd", "none"] if K == 5 else remedy.get("class_names")
    assert sum(labels_of(value, FeedbackController(K), class_names=names, **settings)) > 0


def test_missing_and_unknown_labels_raise():
    with pytest.raises(ValueError, match=r"has none \(None or NaN\)"):
        labels_of(["car", None], class_names=NAMES)
    with pytest.raises(ValueError, match="got 'emu' in the stream; the classes are 'person', 'car', 'dog', 'none'"):
        labels_of({"emu"}, class_names=NAMES)
    with pytest.raises(TypeError, match="got a str without it"):
        list(FairStream(["text"], FeedbackController(4), batch_size=1, several_labels=True))


def test_settings_that_do_not_fit_raise():
    sets = LabelSets.from_matrix(label_rows(100))
    controller = FeedbackController(4, label_sets=sets)
    with pytest.raises(ValueError, match=r"Set FairStream\(several_labels=True\)"):
        stream(label_rows(8), controller, several_labels=False)
    assert len(list(stream(label_rows(64), controller))) == 64
    with pytest.raises(ValueError, match=r"Set reference='uniform' or 'target'"):
        stream(label_rows(8), FeedbackController(4, label_sets=sets, reference="prior"))
    with pytest.raises(TypeError, match="several_labels must be True or False"):
        stream([], several_labels=1)
    with pytest.raises(ValueError, match="class_names must name every class: got 2 names for 4 classes"):
        stream([], class_names=["a", "b"])


def test_row_is_no_single_label():
    """Without the switch, rows with several ones stay an error that names it."""
    rows = [[1, 0, 0, 0], [1, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"got array\(\[1, 1, 0, 0\]\) .* set FairStream\(several_labels=True\)"):
        list(stream(rows, several_labels=False, batch_size=2))
    assert len(list(stream(rows, batch_size=2))) == 2


class Sample:
    """A sample whose end can be watched."""

    def __init__(self, number):
        self.number = number


@pytest.mark.parametrize("reuse", [1, 3])
def test_samples_are_held_and_used_within_bounds(reuse):
    """A buffer holds at most `buffer_size` samples, and each label hands a sample out at most `max_reuse` times."""
    rows, alive = label_rows(4000), weakref.WeakSet()

    class Source(IterableDataset):
        def __iter__(self):
            for number, row in enumerate(rows):
                alive.add(item := Sample(number))
                yield item, row

    source = FairStream(
        Source(), FeedbackController(4), batch_size=16, buffer_size=32, max_reuse=reuse, several_labels=True
    )
    uses, most = Counter(), 0
    for draw, samples in source.batches():
        for (item, row), label in zip(samples, draw.drawn_for, strict=True):
            assert row[label]
            uses[item.number, label] += 1
        del samples, item  # nothing else holds the batch
        most = max(most, len(alive))
    assert max(uses.values()) == reuse
    assert 32 < most <= 4 * 32 + 16 + 13  # the buffers, the batch, and what is sorted into the buffers


def test_classes_that_do_not_arrive():
    """A label that is missing has p = 0, and the others get its share."""
    rows = label_rows(4000)
    rows[:, 2] = False
    rows[:, 1] |= ~rows.any(axis=1)
    for number, (draw, _) in enumerate(stream(rows).batches()):
        assert draw.probs[2] == draw.counts[2] == 0
        assert draw.probs.sum() == pytest.approx(1.0)
        if number > 20:
            assert draw.available.tolist() == [True, True, False, True]


def test_class_without_target_comes_along():
    """A label with target 0 is never drawn for itself, and has no buffer."""
    controller = FeedbackController(4, [0.5, 0.0, 0.3, 0.2])
    counts = sum(draw.counts for draw, _ in stream(label_rows(4000), controller).batches())
    for draw, _ in stream(label_rows(4000), controller).batches():
        assert not (draw.drawn_for == 1).any()
    assert counts[1] >= counts[2] > 0


def test_plain_loop_reports_rows():
    """Without workers, the controller of the loop itself learns what comes together, and takes rows and losses."""
    controller = FeedbackController(4)
    source = stream(label_rows(3200), controller)
    for _, rows in DataLoader(source, batch_size=16):
        source.step_update(rows, rows * torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert controller.draws == 200
    assert not controller.in_flight
    np.testing.assert_allclose(controller.ema_loss, [1.0, 2.0, 3.0, 4.0], rtol=0.01)
    np.testing.assert_allclose(controller.trained_mix, controller.q, rtol=0.15)
    assert np.abs(controller.q - 0.25).max() > 0.01
    controller.reset()
    assert controller.q.tolist() == [0.25] * 4


def test_tracker_follows_the_draws():
    """In the main process `q` is the label mix that the workers' draws bring, and the counts are those of labels."""
    rows = label_rows(3200)
    source = stream(rows)
    tracker = StreamTracker(source)
    for draw, _ in source.batches():
        tracker.report(draw)
    best = RestingDraw(np.full(4, 0.25), LabelSets.from_matrix(rows).cooccurrence())
    np.testing.assert_allclose(tracker.controller.q, best.labels, rtol=0.02)
    np.testing.assert_allclose(tracker.controller.rest, best.mix, atol=0.01)
    np.testing.assert_allclose(tracker.controller.trained_mix, best.labels, rtol=0.1)
    assert tracker.class_counts.tolist() == rows.sum(axis=0).tolist()
    assert tracker.handed_out.sum() > 3200
    other = StreamTracker(stream(rows))
    other.restore(tracker.capture())
    assert other.controller.q.tolist() == tracker.controller.q.tolist()
    tracker.reset()
    assert tracker.controller.q.tolist() == [0.25] * 4


@pytest.mark.slow
def test_moving_target_is_reached():
    ends = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    shift = schedules.Shift(schedules.Linear(0.0, 1.0, duration=500), *ends)
    rows = label_rows(24_000)
    controller = FeedbackController(4, shift)
    draws = [draw for draw, _ in stream(rows, controller).batches()]
    assert draws[-1].resting.shape == (2, 2, 4)
    for part, end in zip((draws[:40], draws[-500:]), ends, strict=True):
        total = sum(draw.counts for draw in part)
        best = RestingDraw(np.array(end), LabelSets.from_matrix(rows).cooccurrence())
        np.testing.assert_allclose(total / total.sum(), best.labels, atol=0.025)


def test_workers_do_not_balance_each_other(caplog):
    """Each worker draws from its own labels, and the log says so once for each that could help another."""
    caplog.set_level(logging.WARNING, "lightning_fair")
    files = Files([[0, 1, 2], [0, 3]], 1600)
    settings = {"batch_size": 16, "several_labels": True, "label_fn": lambda sample: {sample[1], 0}}
    source = FairStream(files, FeedbackController(4, horizon=16.0), **settings)
    for turn in islice(in_turns(source, 2), 60):
        for worker, (draw, _) in turn:
            assert draw.weight_scale is None
            assert draw.probs[[1, 2] if worker else [3]].tolist() == ([0.0, 0.0] if worker else [0.0])
            assert draw.label_sets.lengths.max() == 2
    said = [record.getMessage() for record in caplog.records if "do not balance" in record.getMessage()]
    assert len(said) == 2


def test_solutions_are_few(monkeypatch):
    """The draws are computed again when a tenth more samples are known."""
    solved = []
    original = FeedbackController.solve_draws
    monkeypatch.setattr(
        FeedbackController, "solve_draws", lambda *args, **options: solved.append(0) or original(*args, **options)
    )
    list(stream(label_rows(8000)))
    assert 25 <= len(solved) <= 40


def test_saved_samples_stay_shared():
    """A sample in several buffers comes back from a checkpoint as one object."""
    rows = label_rows(800)
    batches = (source := stream(rows, save_buffers=True))._logged_batches()
    list(islice(batches, 20))
    state = source.state_dict()
    resumed = stream(rows, save_buffers=True)
    resumed.load_state_dict(state)
    next(iter(resumed))
    held = [each for label in range(4) for each in held_samples(resumed._iteration.buffers, label)]
    numbers = Counter(sample[0] for sample, _ in held)
    assert len({id(sample) for sample, _ in held}) == len(numbers)
    assert max(numbers.values()) > 1
