"""Batches of samples with several labels."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from control_helpers import OPERATIONS
from hypothesis import given
from label_set_helpers import ROWS, SETS, K, make_sampler, some_losses, tags

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.schedules import Linear, Shift

MOVING = {"target": Shift(Linear(0.0, 1.0, 30), start="prior"), "lambda2": 0.5, "horizon": 40.0}


def own_classes(draw):
    """Return the class that each of the samples was drawn for."""
    return draw.split.labels[draw.rank_slice].take(draw.shuffle)


# -- what is drawn -------------------------------------------------------------------------------------


def test_counts_are_the_labels_of_the_batch():
    sampler = make_sampler(steps=20, **MOVING)
    for batch in sampler:
        draw = sampler.deliver()
        np.testing.assert_array_equal(draw.labels, ROWS[batch])
        np.testing.assert_array_equal(draw.counts, ROWS[batch].sum(axis=0))
        assert (draw.size, draw.local_size) == (12, ROWS[batch].sum())
        assert ROWS[batch, own_classes(draw)].all()
        sampler.report(draw)


def test_places_follow_the_class_mix():
    """The places of each class are the floor or the ceiling of their expectation."""
    sampler = make_sampler(steps=20, **MOVING)
    for _ in sampler:
        draw = sampler.deliver()
        assert (np.abs(np.bincount(own_classes(draw), minlength=K) - 12 * draw.probs) < 1.0 + 1e-9).all()
        sampler.report(draw)


def test_samples_of_a_label_are_drawn_equally_often_for_it():
    """Also if draws are withdrawn; for other labels, a sample can be drawn more often."""
    sampler, uses = make_sampler(steps=400, **MOVING), np.zeros((K, SETS.size), int)
    for number in np.random.default_rng(0).integers(1, 9, 30).tolist():
        for _ in islice(sampler, number):
            draw = sampler.deliver()
        for draw in sampler.controller.in_flight[: number - 1]:  # the last one is withdrawn
            np.add.at(uses, (own_classes(draw), draw.indices), 1)
            sampler.report(draw)
            assert max(np.ptp(uses[k][ROWS[:, k]]) for k in range(K)) <= 1
        sampler.withdraw()
    assert uses.sum(axis=1).min() > 0
    assert not uses[~ROWS.T].any()


def test_label_without_a_target_is_not_drawn_for_itself():
    """It rides along with others, and its deficit is none."""
    target = np.array([0.0, 0.3, 0.2, 0.2, 0.2, 0.1])
    sampler = make_sampler(target=target, alpha=4.0)
    for batch in sampler:
        draw = sampler.deliver()
        assert draw.probs[0] == 0.0
        assert 0 not in own_classes(draw)
        sampler.controller.step_update(ROWS[batch])
    assert sampler.drawn[0] > 0
    assert sampler.controller.deficits[0] == 0.0


def test_matrix_without_a_controller_is_balanced():
    """The default target is uniform over the labels that have samples, as near as their company allows."""
    sampler = FeedbackBatchSampler(np.column_stack([tags()[:, 1:3], np.zeros(400, bool)]), batch_size=20)
    assert isinstance(sampler.labels, LabelSets)
    for batch in sampler:
        sampler.controller.step_update(sampler.labels.take(batch).to_dense())
    share = sampler.drawn / sampler.drawn.sum()
    np.testing.assert_allclose(share, [1 / 3, 1 / 3, 0.0, 1 / 3], atol=0.02)


# -- records -------------------------------------------------------------------------------------------


def test_drawn_and_trained_labels_are_counted():
    sampler, reported, last = make_sampler(steps=30, **MOVING), np.zeros(K, int), []
    for _ in range(4):
        for place, batch in enumerate(islice(sampler, 5)):
            last = [*last, batch]
            np.testing.assert_array_equal(sampler.drawn, reported + ROWS[np.concatenate(last)].sum(axis=0))
            if place < 3:
                sampler.report(sampler.controller.in_flight[0])
                reported += ROWS[last.pop(0)].sum(axis=0)
            np.testing.assert_array_equal(sampler.trained, reported)
        sampler.withdraw()
        last = []
        np.testing.assert_array_equal(sampler.drawn, reported)
    np.testing.assert_allclose(sampler.repeats, reported / ROWS.sum(axis=0))


@pytest.mark.parametrize("steps", [5, 20, 60])
def test_coverage_is_the_measured_one(steps):
    """Without the draws in flight, of which there are three."""
    measured, expected = [], []
    for seed in range(5):
        sampler = make_sampler(steps=steps, sampler={"seed": seed})
        seen = np.concatenate([*islice(iter(sampler), steps - 3)])
        for draw in sampler.controller.in_flight:
            sampler.report(draw)
        list(islice(iter(sampler), 3))
        measured.append(np.unique(seen).size / SETS.size)
        expected.append(sampler.coverage)
    assert np.mean(expected) == pytest.approx(np.mean(measured), abs=0.015)


# -- replay and resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback_delay", [1, 6])
@given(operations=OPERATIONS)
def test_replayed_draws_are_unchanged(feedback_delay, operations):
    """Whatever is reported, in any order, a draw that is made once more is the draw that was made first."""
    sampler = make_sampler(batch_size=8, steps=11, feedback_delay=feedback_delay, sampler={"seed": 3}, **MOVING)
    batches, delivered, drawn = iter(sampler), [], {}
    for name, place in operations:
        if name == "draw" and (batch := next(batches, None)) is not None:
            draw = sampler.deliver()
            delivered.append(draw)
            values = batch, draw.probs.tolist(), draw.counts.tolist(), draw.reference.tolist()
            assert drawn.setdefault(draw.draw_id, values) == values
            np.testing.assert_array_equal(draw.labels, ROWS[batch])
        elif name == "report" and delivered:
            draw = delivered.pop(place % len(delivered))
            losses = draw.counts * (1.0 + np.arange(K)) * (1 + draw.draw_id % 3)
            sampler.report(draw, draw.counts, losses, draw.counts)
        elif name in ("withdraw", "abandon", "resume"):
            if name == "withdraw":
                sampler.withdraw()
            elif name == "resume":
                state = sampler.capture()
                sampler.reset()
                sampler.restore(state)
            batches, delivered = iter(sampler), []
        assert (sampler.drawn >= sampler.trained).all()
        assert (sampler.trained >= 0).all()


def run_on(sampler, number, lead=2):
    """Draw ``lead`` ahead, report ``number``; return what was drawn and what is counted after each."""
    got, waiting, batches = [], 0, iter(sampler)
    for _ in range(number):
        while waiting < lead + 1 and next(batches, None) is not None:
            waiting += 1
        draw, waiting = sampler.deliver(), waiting - 1
        losses = some_losses(draw.indices, draw.draw_id)
        sampler.report(draw, None, np.where(draw.labels, losses, 0.0).sum(axis=0), draw.counts)
        got.append((draw.draw_id, draw.indices, draw.probs.tolist(), draw.counts.tolist(), sampler.trained.tolist()))
    return got


@pytest.mark.parametrize("stop", [0, 1, 5, 8, 9])
def test_captured_state_continues_exactly(stop):
    whole, cut, other = (make_sampler(steps=9, feedback_delay=3, **MOVING) for _ in range(3))
    expected, got = run_on(whole, 9), run_on(cut, stop)
    file = io.BytesIO()
    torch.save(cut.capture(), file)
    file.seek(0)
    other.restore(torch.load(file, weights_only=True))
    assert other.coverage == cut.coverage
    got += run_on(other, 9 - stop)
    assert got == expected
    for sampler in (whole, other):
        sampler.end_epoch()
    assert run_on(other, 9) == run_on(whole, 9)
    assert whole.coverage == other.coverage


def test_state_of_other_labels_is_refused():
    """Of as many samples, classes and labels of each class."""
    rows = ROWS.copy()
    rows[[0, 1]] = rows[[1, 0]]
    assert (rows != ROWS).any()
    sampler = make_sampler(LabelSets.from_matrix(rows[:, :-1]))
    with pytest.raises(ValueError, match=r"labels' checksum = \d+, this run has \d+"):
        sampler.restore(make_sampler().capture())


# -- ranks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_draw_the_batch_of_one_process(world_size):
    options = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    alone = make_sampler(**MOVING)
    ranks = [make_sampler(batch_size=12 // world_size, sampler=each, **MOVING) for each in options]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert sorted(np.concatenate(parts).tolist()) == sorted(one)
        for rank, part in zip(ranks, parts, strict=True):
            draw = rank.deliver()
            np.testing.assert_array_equal(draw.labels, ROWS[part])
            np.testing.assert_array_equal(draw.counts, ROWS[one].sum(axis=0))
            assert (draw.size, draw.local_size) == (12, ROWS[part].sum())
            rank.controller.step_update(ROWS[one], some_losses(one))
        alone.controller.step_update(ROWS[one], some_losses(one))
    assert all(np.array_equal(each.controller.trained_mix, alone.controller.trained_mix) for each in ranks)


def test_report_of_one_rank_is_warned_about(recwarn):
    options = [{"rank": rank, "world_size": 2} for rank in range(2)]
    samplers = [make_sampler(batch_size=6, sampler=each) for each in options]
    for batches in zip(*samplers, strict=True):
        samplers[0].controller.step_update(ROWS[batches[0] + batches[1]])
    assert not recwarn.list
    batch = next(iter(samplers[0]))
    samplers[0].controller.step_update(ROWS[batch])
    (warning,) = recwarn
    assert f"The report has {ROWS[batch].sum()} labels, those of one rank" in str(warning.message)


# -- weights of a batch --------------------------------------------------------------------------------


def test_weights_of_the_current_batch():
    """Of rows with and without the last class; at most the largest weight."""
    sampler = make_sampler(reference="prior", max_weight=1.5, target="uniform")
    for batch in sampler:
        draw = sampler.controller.oldest
        expected = np.minimum(sampler.weights_at(draw.probs)[batch], 1.5)
        for rows in (ROWS[batch], torch.from_numpy(ROWS[batch, :-1]).float()):
            np.testing.assert_allclose(sampler.sample_weights(rows).numpy(), expected, rtol=1e-6)
        sampler.controller.step_update(ROWS[batch])
    with pytest.raises(RuntimeError, match=r"no batch was drawn that is not reported yet"):
        sampler.sample_weights(ROWS[:2])
    with pytest.raises(RuntimeError, match=r"one label each: use importance_weights"):
        FeedbackBatchSampler([0, 1], 2).sample_weights(ROWS[:2])


# -- what does not fit ---------------------------------------------------------------------------------


def test_controller_has_to_fit_the_labels():
    with pytest.raises(ValueError, match=r"FeedbackController\(\.\.\., label_sets=<the labels of the data>\)"):
        FeedbackBatchSampler(tags(), 2, controller=FeedbackController(K))
    with pytest.raises(ValueError, match=r"these have one each\. Leave label_sets out"):
        FeedbackBatchSampler([0, 1, 5], 2, controller=FeedbackController(K, label_sets=SETS))


def test_controller_of_other_samples_is_refused():
    """Its draws and weights would be those of its own samples."""
    part = SETS.take(np.arange(SETS.size // 2))
    controller = FeedbackController(K, label_sets=SETS)
    with pytest.raises(ValueError, match=r"of other samples than the sampler draws from"):
        FeedbackBatchSampler(part, 2, controller=controller)
    FeedbackBatchSampler(SETS, 2, controller=controller)
    FeedbackBatchSampler(part, 2, controller=FeedbackController(K, label_sets=part))


def test_label_without_samples_is_refused_or_skipped():
    rows = np.column_stack([tags()[:, :2], np.zeros(400, bool)])
    sets = LabelSets.from_matrix(rows)
    with pytest.raises(ValueError, match=r"No samples of class 2, but"):
        make_sampler(sets, target="uniform")
    sampler = make_sampler(sets, target="uniform", sampler={"empty_classes": "skip"}, alpha=2.0)
    np.testing.assert_allclose(sampler.controller.q, [1 / 3, 1 / 3, 0.0, 1 / 3], atol=1e-4)
    for batch in sampler:
        sampler.controller.step_update(sets.take(batch).to_dense())
    np.testing.assert_allclose(sampler.drawn / sampler.drawn.sum(), [1 / 3, 1 / 3, 0.0, 1 / 3], atol=0.03)
