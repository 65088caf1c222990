"""Feedback from validation: resume, ranks, and a class that is hard."""

import os

import feedback_runs
import numpy as np
import pytest
from feedback_runs import train
from lightning_helpers import WORKERS, warnings_about
from rank_runs import Ranks


def differs(record, whole):
    return (record.draws, record.parameters) != (whole.draws[len(whole.draws) - len(record.draws) :], whole.parameters)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("to", ["objective", "draw"])
def test_resume_after_validation(to, workers, tmp_path):
    """A fit resumed from a checkpoint of a validation, of an epoch or between them is the uninterrupted one."""
    whole = train(to=to, workers=workers, keep=tmp_path, val_check_interval=3)
    names = ["03_validation", "04_batch", "06_validation", "08_epoch", "12_batch"]
    resumed = [train(to=to, workers=workers, ckpt=tmp_path / f"{name}.ckpt", val_check_interval=3) for name in names]
    assert [len(record.draws) for record in resumed] == [21, 20, 18, 16, 12]
    assert len({draw[1 if to == "objective" else 2] for draw in whole.draws}) > 3
    assert [differs(record, whole) for record in resumed] == [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize("to", ["objective", "draw"])
@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 3}, {"check_val_every_n_epoch": 2}], ids=str)
def test_resume_from_every_checkpoint(settings, to, tmp_path):
    """Every resumed fit is the uninterrupted one, or warns that Lightning skips a validation."""
    whole, skipped = train(to=to, keep=tmp_path, **settings), []
    for path in sorted(tmp_path.iterdir()):
        with warnings_about("Lightning skips this validation now") as messages:
            record = train(to=to, ckpt=path, **settings)
        skipped += [path.stem] * len(messages)
        assert messages or not differs(record, whole), path.stem
    validations = [path.stem for path in tmp_path.glob("*_validation.ckpt")]
    assert sorted(skipped) == sorted(name.replace("validation", "batch") for name in validations)


# -- ranks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    ranks = Ranks(2)
    yield ranks
    ranks.end()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does.")
@pytest.mark.parametrize("how", ["logged", "logged on rank zero", "given"])
def test_ranks_agree(how, two):
    """Values that differ between the ranks move the draws and the objective of both alike, bit for bit."""
    first, second = two(feedback_runs.train, how=how, val_check_interval=3)
    assert len({draw[1] for draw in first.draws}) > 3
    assert [draw[:3] for draw in first.draws] == [draw[:3] for draw in second.draws]
    assert (first.scores.tobytes(), first.reference.tobytes()) == (second.scores.tobytes(), second.reference.tobytes())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="The processes are started and ended as POSIX does.")
def test_counts_weight_the_ranks(two):
    """With counts, two ranks feed back the recalls of all samples, those of one process."""
    alone = train("given", max_epochs=1, val_check_interval=2)
    both = two(feedback_runs.train, how="given", max_epochs=1, val_check_interval=2)
    np.testing.assert_allclose(both[0].scores, alone.scores, atol=1e-6)
    assert np.ptp(alone.scores) > 0
