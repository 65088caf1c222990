"""The command that trains with and without the plugin."""

import pytest
from recipe_helpers import run_script
from recipes.report import comparison, make_report
from rich.console import Console

FAST = ("epochs=1", "trainer.accelerator=cpu")


def cells(text, row):
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_table():
    runs = {
        "a": make_report(["x", "[y]"], [90, 10], [50, 50], [1.0, 0.5], 0.75, 1.0, 1.0),
        "b": make_report(["x", "[y]"], [90, 10], [50, 50], [0.9, 0.7], 0.75, 1.0, 1.0),
    }
    console = Console(width=100)
    with console.capture() as captured:
        console.print(comparison(runs))
    text = captured.get()
    assert cells(text, "[y]") == ["[y]", "10", "0.500", "0.700"]
    assert cells(text, "mean")[2:] == ["0.750", "0.800"]
    assert cells(text, "worst")[2:] == ["0.500", "0.700"]
    assert cells(text, "data mix")[2:] == ["0.950", "0.880"]


@pytest.mark.slow
def test_runs_side_by_side(tmp_path):
    """Each run has its settings and its charts; the settings of the plugin do not reach the others."""
    done = run_script("compare.py", tmp_path, *FAST, "fair=long_tail", "fair.max_repeats=2", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("Training with")] == [
        "Training with fair=off",
        "Training with baseline=weighted_sampler",
        "Training with fair=long_tail",
    ]
    assert len(cells(done.stdout, "mean")) == 5
    assert "long_tail" in done.stdout
    folders = {path.parent.name for path in tmp_path.glob("outputs/digits/*/*/checkpoints")}
    assert folders == {"fair_off", "baseline_weighted_sampler", "fair_long_tail"}


@pytest.mark.slow
def test_what_cannot_run_is_left_out(tmp_path):
    """A stream has no ``WeightedRandomSampler``; an error of every run is an error."""
    small = ("data.cycles=1", "data.turn_size=64", "trainer.val_check_interval=null")
    done = run_script("compare.py", tmp_path, "experiment=drift", *FAST, *small, "fair=balanced")
    assert done.returncode == 0, done.stderr
    assert "Left out: ValueError: The baseline's sampler draws by index" in done.stdout
    assert len(cells(done.stdout, "mean")) == 4
    assert "tensorboard --logdir outputs" in done.stdout

    done = run_script("compare.py", tmp_path, *FAST, "data.batch_size=0")
    assert done.returncode != 0
    assert "batch_size must be" in done.stderr
