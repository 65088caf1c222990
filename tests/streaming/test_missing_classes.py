"""Log messages about classes that a stream stops sending."""

import logging

import pytest
from stream_runs import Files, in_turns, interrupted, long_tail, stream

from lightning_fair import FairStream, FeedbackController, schedules
from lightning_fair.dataloaders.stream_tracker import StreamTracker


def test_missing_and_back_are_logged_once(caplog):
    with caplog.at_level(logging.INFO, "lightning_fair"):
        list(stream(interrupted(), max_reuse=2, buffer_size=16))
    missing, back = [record.getMessage() for record in caplog.records]
    assert missing.startswith("Class 1 is missing from the stream: not available for 38 batches, the last being batch ")
    assert back.startswith("Class 1 is back in the stream: in batch ")


def test_class_not_arrived_yet_is_logged(caplog):
    list(stream([0] * 400 + [1] * 400, buffer_size=8))
    assert [record.getMessage()[:22] for record in caplog.records] == [
        "Class 1 has not arrive",
        "Class 1 has arrived: i",
    ]


@pytest.mark.parametrize("tracked", [False, True])
def test_class_without_target_is_not_logged(caplog, tracked):
    """Class 1 arrives from batch 70 on, and the target includes it from batch 60 on."""
    target = schedules.Shift(schedules.Step(0.0, 1.0, at=60), [1.0, 0.0], [0.5, 0.5])
    fair = stream([0] * 560 + [0, 1] * 120, FeedbackController(2, target), buffer_size=8)
    if tracked:
        tracker = StreamTracker(fair)
        for draw, _ in fair.batches():
            tracker.report(draw)
    else:
        list(fair)
    assert caplog.records == []


def test_rare_class_is_not_logged(caplog):
    list(stream(long_tail(2000, (0.7, 0.1, 0.1, 0.1)), max_reuse=1))
    assert caplog.records == []


def test_one_worker_logs_for_all(caplog):
    """One worker logs, and it counts the batches of all workers."""
    source = FairStream(Files([[0]] * 2, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    assert sum(1 for _ in in_turns(source, 2, samples=True)) == 201
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Class 1 has not arrived yet: not available for 25 batches, the last being batch 24.")


@pytest.mark.parametrize("files", [[[0], [0, 1]], [[0, 1], [0]]], ids=str)
@pytest.mark.parametrize("lightning", [False, True])
def test_class_of_one_worker_is_not_logged(caplog, files, lightning):
    """A class is not missing if some worker has it."""
    source = FairStream(Files(files, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    tracker = StreamTracker(source)
    for turn in in_turns(source, 2, samples=not lightning):
        for _, batch in turn if lightning else ():
            tracker.report(batch[0])
    assert caplog.records == []


def test_tracker_logs_missing_class(caplog):
    """In the main process the tracker logs a class that no worker has."""
    source = FairStream(Files([[0]] * 2, 1600), FeedbackController(2), batch_size=8, buffer_size=16)
    tracker = StreamTracker(source)
    for turn in in_turns(source, 2):
        for _, (draw, _) in turn:
            tracker.report(draw)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("Class 1 has not arrived yet: not available for 25 batches, the last being batch 24.")
