"""The command that trains with and without the plugin."""

import re

import pytest
from recipe_helpers import run_script
from recipes.report import comparison, make_report
from rich.console import Console

PRESETS = ("fair_balanced", "fair_long_tail", "fair_worst_class")
FAST = ("epochs=1", "trainer.accelerator=cpu")


def report(recalls):
    return make_report(["x", "[y]"], [90, 10], [50, 50], recalls, 0.75, 1.0, 1.0)


def printed(table):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def cells(text, row):
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def test_table():
    """Recalls are averaged over the seeds; the worst class is that of each run."""
    runs = {
        "a": [report([1.0, 0.5]), report([0.6, 0.9])],
        "b": [report([0.9, 0.7]), report([0.9, 0.7])],
    }
    text = printed(comparison(runs))
    assert cells(text, "[y]") == ["[y]", "10", "0.700", "0.700"]
    assert cells(text, "mean")[2:] == ["0.750", "0.800"]
    assert cells(text, "worst")[2:] == ["0.550", "0.700"]
    assert cells(text, "data mix")[2:] == ["0.790", "0.880"]
    assert [line.count("0.000") for line in text.splitlines() if "±" in line] == [2, 1, 1]
    assert "0.071" in text  # of 0.5 and 0.6
    assert "±" not in printed(comparison({"a": runs["a"][:1]}))


@pytest.mark.slow
def test_runs_side_by_side(tmp_path):
    """Each run has its settings; the settings of the plugin do not reach the others. One seed has charts."""
    done = run_script("compare.py", tmp_path, *FAST, "fair=long_tail", "fair.max_repeats=2", "logger=csv")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("Training ")] == [
        "Training 1 of 3: fair=off",
        "Training 2 of 3: baseline=weighted_sampler",
        "Training 3 of 3: fair=long_tail",
    ]
    assert len(cells(done.stdout, "mean")) == 5
    assert "seed 1, 2, 3" in done.stdout
    assert "Charts" not in done.stdout
    folders = {path.parent.name for path in tmp_path.glob("outputs/digits/*/*/checkpoints")}
    choices = ("fair_off", "baseline_weighted_sampler", "fair_long_tail")
    assert folders == {f"{choice}_seed_{seed}" for choice in choices for seed in (1, 2, 3)}
    logged = {path.parts[-3] for path in tmp_path.glob("outputs/digits/*/*/*/metrics.csv")}
    assert logged == {f"{choice}_seed_1" for choice in choices}


@pytest.mark.slow
def test_first_command(tmp_path):
    """The README's first command warns of nothing, fits 79 columns, and shows what the plugin does."""
    done = run_script("compare.py", tmp_path, "trainer.accelerator=cpu", columns=79)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 79
    assert "…" not in done.stdout
    without, _, *presets = map(float, cells(done.stdout, "mean")[2:])
    assert min(presets) > without + 0.1
    command = re.search("tensorboard --logdir (.*)", done.stdout)
    charts = {path.relative_to(tmp_path / command[1]).parts[0] for path in tmp_path.rglob("events*")}
    assert charts == {f"{name}_seed_1" for name in ("fair_off", "baseline_weighted_sampler", *PRESETS)}


@pytest.mark.slow
def test_what_cannot_run_is_left_out(tmp_path):
    """A stream has no ``WeightedRandomSampler``; an error of every run is an error."""
    small = ("data.cycles=1", "data.turn_size=64", "trainer.val_check_interval=null")
    done = run_script("compare.py", tmp_path, "experiment=drift", *FAST, *small, "fair=balanced", "seed=1")
    assert done.returncode == 0, done.stderr
    assert "Left out: ValueError: The baseline's sampler draws by index" in done.stdout
    assert len(cells(done.stdout, "mean")) == 4
    assert "tensorboard --logdir outputs" in done.stdout

    done = run_script("compare.py", tmp_path, *FAST, "data.batch_size=0")
    assert done.returncode != 0
    assert "batch_size must be" in done.stderr
