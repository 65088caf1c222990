"""Streams that are cut after every batch and continue, with their buffers and without, in every worker."""

import io
import logging
import os
import re
from collections import Counter

import numpy as np
import pytest
import torch
from stream_resume_runs import (
    LABELS,
    LAW,
    SIZE,
    SOURCES,
    TARGET,
    Counting,
    CountingSets,
    fair_stream,
    fit_stream,
    listed_sets,
    piped,
    sample,
    train,
)
from torch.utils.data import DataLoader, IterableDataset

from lightning_fair import FeedbackController
from lightning_fair.dataloaders.stream_tracker import StreamTracker

WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


def reloaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.fixture
def log(caplog):
    """Return what the package has logged, and forget it."""
    caplog.set_level(logging.WARNING, "lightning_fair")

    def read():
        messages = [record.getMessage() for record in caplog.records if record.name == "lightning_fair"]
        caplog.clear()
        return messages

    return read


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", SOURCES)
def test_cut_after_every_batch(name, workers, tmp_path):
    """With save_buffers the batches that follow are those of the uncut run, and so is the controller."""
    if name not in ("own class", "list"):
        pytest.importorskip(
            "streaming.base" if name == "streaming" else name.split(",")[0]
        )  # `tests/streaming` has its name
    whole = train(SOURCES[name](tmp_path), workers, save_buffers=True)
    assert len(whole.batches) == 10
    assert len(whole.items) == SIZE
    for cut in range(1, 11):
        state = reloaded(whole.states[cut])
        rest = train(SOURCES[name](tmp_path), workers, state, save_buffers=True)
        assert rest.batches == whole.batches[cut:]
        assert rest.mixes == whole.mixes[cut:]


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("source", [CountingSets(), listed_sets(None)], ids=["own class", "list"])
def test_cut_with_several_labels(source, workers):
    """What is known of the labels comes back with the buffers, and samples in several of them stay shared."""
    settings = {"save_buffers": True, "several_labels": True}
    whole = train(source, workers, **settings)
    assert len(whole.batches) == 10
    for cut in range(1, 11):
        rest = train(source, workers, reloaded(whole.states[cut]), **settings)
        assert rest.batches == whole.batches[cut:]
        assert rest.mixes == whole.mixes[cut:]


def test_state_of_the_other_kind_of_labels_is_refused():
    state = train(CountingSets(), 0, save_buffers=True, several_labels=True).states[3]
    assert train(CountingSets(), 0, state, several_labels=True).batches  # the buffers are left out
    with pytest.raises(
        ValueError, match=r"several labels a sample, and this one has one\..* FairStream\(several_labels=True\)"
    ):
        train(Counting(), 0, state)
    state = train(Counting(), 0).states[3]
    assert train(Counting(), 0, state).batches
    with pytest.raises(
        ValueError, match=r"one label a sample, and this one has several\..* FairStream\(several_labels=False\)"
    ):
        train(CountingSets(), 0, state, several_labels=True)


def test_own_epochs_of_a_source_continue(tmp_path):
    """mosaicml-streaming counts its epochs, and a new process begins with the first one."""
    pytest.importorskip("streaming.base")
    source = SOURCES["streaming"](tmp_path)
    first, second = (train(source, 0, epoch=epoch, save_buffers=True) for epoch in range(2))
    assert first.items != second.items
    rest = train(SOURCES["streaming"](tmp_path), 0, second.states[4], epoch=1, save_buffers=True)
    assert rest.batches == second.batches[4:]


@pytest.mark.parametrize("workers", WORKERS)
def test_buffers_are_left_out_and_counted(workers, log):
    """Without save_buffers no sample is read twice or left out, but those that waited in the buffers at the cut."""
    once = {"max_reuse": 1, "buffer_size": 24}
    whole = train(Counting(), workers, **once)
    assert len(whole.items) == len(set(whole.items)) == SIZE
    num_lost = []
    for cut in range(1, 10):
        first = [item for _, items, *_ in whole.batches[:cut] for item in items]
        num_read = whole.states[cut]["class_counts"].sum().item()
        log()
        rest = train(Counting(), workers, whole.states[cut], **once)
        (message,) = log()
        said = int(re.search(r"(\d+) samples that waited in the buffers were read", message)[1])
        assert said == num_read - len(first)
        items = first + rest.items
        assert len(items) == len(set(items)) == SIZE - said
        assert rest.states[-1]["class_counts"].sum() == SIZE or not rest.batches
        num_lost.append(said)
    assert max(num_lost) > 20


def test_other_settings_of_buffers_are_refused():
    """With the remedies in the error, the run continues."""
    state = train(Counting(), 0, save_buffers=True).states[3]
    with pytest.raises(ValueError, match=r"buffer_size=6, max_reuse=64, .* save_buffers=False"):
        train(Counting(), 0, state, save_buffers=True, max_reuse=4)
    assert train(Counting(), 0, state, max_reuse=4).batches


def test_losses_that_reach_draws_made_ahead_are_said(log, tmp_path):
    """A loader without a length is asked for one batch ahead, and one with workers for more."""
    fit_stream(Counting(), save=tmp_path, lambda2=0.5, max_epochs=1)
    log()
    fit_stream(Counting(), resume=tmp_path / "3.ckpt", lambda2=0.5, max_epochs=1)
    assert any("Losses or validations reach draws that are made ahead" in line for line in log())


@pytest.mark.slow
def test_cut_with_shards_of_different_length():
    """One of three workers ends early; the others go on in turn."""
    ends = {1: 9}
    whole = train(Counting(ends), 3, save_buffers=True, reads_per_sample=1)
    for cut in range(1, len(whole.batches)):
        rest = train(Counting(ends), 3, whole.states[cut], save_buffers=True)
        assert rest.batches == whole.batches[cut:]


@pytest.mark.parametrize("workers", WORKERS)
def test_cut_twice(workers):
    """A second cut comes before each worker has had a batch after the first one."""
    whole = train(Counting(), workers, save_buffers=True)
    second = train(Counting(), workers, whole.states[3], save_buffers=True)
    for cut in (0, 1, 4):
        third = train(Counting(), workers, reloaded(second.states[cut]), save_buffers=True)
        assert third.batches == whole.batches[3 + cut :]


FITS = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True, "limit_train_batches": 5, "max_epochs": 3},
    {"num_workers": 2, "loader": "StatefulDataLoader"},
    {"several_labels": True},
    {"num_workers": 2, "several_labels": True, "limit_train_batches": 5, "max_epochs": 3},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", FITS, ids=str)
def test_fit_continues(settings, tmp_path):
    """A fit that is cut within an epoch, at its end or in the next one has batches and model of the uncut one."""
    kind = DataLoader
    if "loader" in settings:
        kind = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    settings = {name: value for name, value in settings.items() if name != "loader"}
    source = CountingSets if settings.get("several_labels") else Counting
    whole = fit_stream(source(), kind, save=tmp_path, **settings)
    length = settings.get("limit_train_batches", 10)
    for cut in (3, length, length + 2):
        rest = fit_stream(source(), kind, resume=tmp_path / f"{cut}.ckpt", **settings)
        assert rest.seen == whole.seen[cut:]
        assert rest.mixes == whole.mixes[cut:]
        assert all(map(torch.equal, rest.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize("source", [Counting, CountingSets])
@pytest.mark.parametrize("workers", WORKERS)
def test_stateful_loader_continues_without_a_trainer(workers, source):
    """torchdata's StatefulDataLoader saves the position of each worker by its own protocol."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    _check_loop(lambda stream: stateful.StatefulDataLoader(stream, batch_size=8, num_workers=workers), source)


@pytest.mark.parametrize("source", [Counting, CountingSets])
def test_stream_continues_without_a_trainer(source):
    _check_loop(lambda stream: _SavesStream(stream, batch_size=8), source)


class _SavesStream(DataLoader):
    def state_dict(self):
        return self.dataset.state_dict()

    def load_state_dict(self, state):
        self.dataset.load_state_dict(state)


def _check_loop(make_loader, source):
    """Cut a plain loop after every batch, and continue it with new objects."""

    def loop(state=None, of_controller=None):
        settings = {"save_buffers": True, "return_weights": True, "several_labels": source is CountingSets}
        stream = fair_stream(source(), FeedbackController(4, TARGET, **LAW), **settings)
        loader = make_loader(stream)
        if state is not None:
            stream.controller.load_state_dict(of_controller)
            stream.share()
            loader.load_state_dict(state)
        yield None, loader.state_dict(), stream.controller.state_dict()
        for _, y, item, weight in loader:
            stream.step_update(y)
            yield (item.tolist(), weight.tolist()), loader.state_dict(), stream.controller.state_dict()

    whole = list(loop())
    assert len(whole) == 11
    for cut, (_, *states) in enumerate(whole):
        assert [batch for batch, *_ in loop(*states)][1:] == [batch for batch, *_ in whole][cut + 1 :]


class Stateless(IterableDataset):
    def __iter__(self):
        return map(sample, range(SIZE))


class Abstract(Counting):
    def state_dict(self):
        raise NotImplementedError


class OddState(Counting):
    def state_dict(self):
        return {"position": object()}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Stateless, "has no state_dict"),
        (Abstract, "raised NotImplementedError"),
        (OddState, r"must be dense tensors.*, got a builtins\.object"),
    ],
)
def test_source_without_a_state_starts_anew(source, reason, log):
    whole = train(source(), 0)
    (at_save,) = log()
    assert re.search(f"The position in the stream is not saved: .*{reason}", at_save)
    rest = train(source(), 0, whole.states[1])
    assert log()[0] == "The stream starts at the beginning of its source within the epoch: its position is not saved."
    assert rest.batches[0][0] == 1  # the controller goes on
    assert len(rest.items) == SIZE


def test_iteration_that_ended_within_the_epoch_is_not_continued(log):
    """Lightning starts a stream anew within an epoch if another training loader has more batches."""
    stream = fair_stream(Counting(), FeedbackController(4, TARGET, **LAW))
    tracker = StreamTracker(stream)
    for within_epoch in (False, True):
        tracker.start_iteration(0, within_epoch=within_epoch, keep_delivered=False)
        draws = [draw for draw, _ in stream.batches(with_positions=True)]
        assert len(draws) == 10
        for draw in draws:
            tracker.report(draw)
    assert log() == []


@pytest.mark.slow
def test_another_number_of_workers_starts_anew(log):
    whole = train(Counting(), 0, save_buffers=True)
    log()
    rest = train(Counting(), 2, whole.states[4], save_buffers=True)
    (message,) = log()
    assert "its position is that of 1 processes on each rank, and the loader has 2" in message
    assert len(rest.items) == SIZE


def test_samples_that_cannot_be_saved_raise():
    """They are refused with the first batch, not hours later in a checkpoint."""
    source = [(torch.zeros(2), y, {"path": os.path, "y": y}) for y in (0, 1) * 20]
    with pytest.raises(
        TypeError, match=r"samples of a stream must be dense tensors.*, got a builtins\.module.*collate_fn"
    ):
        train(source, 0, save_buffers=True)


def test_damaged_position_raises():
    states = train(Counting(), 0, save_buffers=True).states
    for key, value, match in (
        ("num_workers", 0, "positions.num_workers must be an integer"),
        ("workers", [{}], r"positions.workers\[0\] has no"),
        (
            "workers",
            [{**states[2]["positions"][0]["workers"][0], "reads": torch.zeros(9, dtype=torch.int64)}],
            "cut off",
        ),
    ):
        damaged = {**states[2], "positions": [{**states[2]["positions"][0], key: value}]}
        with pytest.raises(ValueError, match=match):
            train(Counting(), 0, damaged, save_buffers=True)


@pytest.mark.parametrize("workers", WORKERS)
def test_data_pipe_gets_its_shard(workers, tmp_path):
    """A data pipe that shuffles before its sharding filter gives each worker other samples, in the same order."""
    run = train(piped(tmp_path), workers, max_reuse=1, buffer_size=SIZE)
    assert Counter(run.items) == Counter(range(SIZE))
    assert [LABELS[item] for item in run.items] == [y for _, _, labels, _ in run.batches for y in labels]
    assert np.diff(run.items[:20]).min() < 0
