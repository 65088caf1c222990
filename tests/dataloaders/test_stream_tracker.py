"""The draws of a stream, followed in the main process."""

import numpy as np
import pytest
from stream_runs import TARGET, long_tail, mixed, stream

from lightning_fair import FeedbackController
from lightning_fair.dataloaders.stream_tracker import StreamTracker


def test_state_of_other_data_raises():
    tracker = StreamTracker(mixed(8, FeedbackController(4)))
    with pytest.raises(ValueError, match=r"stream reads state version 2, got None.*not a FairStream"):
        tracker.restore({"version": 1})


def test_reports_are_counted():
    source = stream(long_tail(400), FeedbackController(4, TARGET), max_reuse=4)
    tracker = StreamTracker(source)
    assert np.isnan(tracker.arriving).all()
    for draw, _ in source.batches():
        tracker.report(draw)
    assert tracker.class_counts.sum() == tracker.handed_out.sum() == 400
    assert tracker.class_counts.tolist() == np.bincount(long_tail(400)).tolist()
    assert tracker.arriving.sum() == pytest.approx(1.0)
    assert (tracker.repeats <= 4).all()
    assert tracker.controller.draws == 50


def test_restored_state_continues():
    source = stream(long_tail(400), FeedbackController(4, TARGET))
    tracker = StreamTracker(source)
    for draw, _ in source.batches():
        tracker.report(draw)
    other = StreamTracker(stream(long_tail(400), FeedbackController(4, TARGET)))
    other.restore(tracker.capture())
    assert other.class_counts.tolist() == tracker.class_counts.tolist()
    assert other.controller.trained_mix.tolist() == tracker.controller.trained_mix.tolist()
    draw, _ = next(other.stream.batches())
    assert draw.draw_id == 50
    other.reset()
    assert other.controller.draws == other.class_counts.sum() == 0


def test_counts_are_clipped_to_the_draw():
    tracker = StreamTracker(stream(long_tail(80)))
    draw, _ = next(tracker.stream.batches())
    assert tracker.clip_counts(2.0 * draw.counts, draw) == pytest.approx(draw.counts)
    assert tracker.clip_counts(draw.counts / 2, draw) == pytest.approx(draw.counts / 2)
