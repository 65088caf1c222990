"""The benchmark of draws."""

import numpy as np
import pytest


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_99_to_1_are_even(load, workers):
    draws, systems = load("benchmarks.draws"), load("benchmarks.systems")
    assert draws.first_batch(systems.OURS, seed=0) == 0.0
    assert draws.first_batch_after_history(systems.COUNT, seed=0) >= 0.49
    shares = draws.shares_with_workers(systems.OURS, seed=0, workers=workers, steps=20)
    assert np.abs(shares - 0.5).max() <= 1 / draws.BATCH


def test_systematic_draws_reduce_loss_noise(load):
    draws = load("benchmarks.draws")
    ours, iid = (draws.loss_deviation(system, 0.05, seed=0, steps=60) for system in (draws.OURS, draws.IID))
    # Expected about 0.15; a deviation of 60 values is itself known to about 10 %.
    assert ours / iid < 0.3


def test_weights_average_one(load):
    """With the p of the draw, not with the current p."""
    draws = load("benchmarks.draws")
    seen = draws.mean_weight(seed=0, steps=600)
    mean, error = seen.with_draw
    assert seen.swing[0] < 0.7
    assert seen.swing[1] > 1.3
    # Four standard errors: one run in 16,000 would fail, and the seed is fixed.
    assert abs(mean - 1.0) < 4 * error < 0.01
    assert seen.with_current[0] - 1.0 > 0.05


@pytest.mark.slow
def test_table_of_draws_is_printed(load, capsys, tmp_path):
    worth = ["--seeds", "1", "--steps", "40", "--workers", "0"]
    costs = ["--rounds", "1", "--draws", "20", "--sizes", "6000", "--classes", "10"]
    load("benchmarks.draws").main([*worth, *costs, "--picture", str(tmp_path / "draws.png")])
    table = capsys.readouterr().out
    assert "ns an index" in table
    assert (tmp_path / "draws.png").exists()
    assert "mean importance weight" in table
