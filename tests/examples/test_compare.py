"""The command that trains with and without the plugin."""

import os
import re
import signal
import subprocess
import sys

import compare
import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from recipe_helpers import ROOT, process_settings_restored, run_script
from recipes import sweep, training
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


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Compose the runs of a command line."""
    GlobalHydra.instance().clear()
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with process_settings_restored(), hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *given: {
            name: [compare._config(values, 1, (1,), str(tmp_path))]
            for name, values in compare.choose_methods(given).items()
        }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("threads=-1", "^ValueError: threads must be at least 1, got -1"),
        ("data.batch_size=0", "^ValueError, in data: batch_size must be"),
        ("+foo=1", "^ValueError: Nothing reads foo"),
        ("fair.alpha=-1", "^ValueError, in fair: alpha must lie in"),
        ("baseline=drw", "remove baseline=drw"),
        ("baseline.loss.begin=3", r"remove baseline\.loss\.begin=3"),
        ("fair=off", "remove fair=off"),
    ],
)
def test_wrong_setting_is_one_sentence(runs, tmp_path, capsys, given, message):
    """It is raised before anything is trained or written."""
    with pytest.raises(sweep.SettingsError, match=message):
        compare.check(runs(given))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_method_that_cannot_run_is_left_out(runs, capsys):
    """As long as the run without the plugin and one of the presets are left."""
    small = ("data.cycles=1", "data.turn_size=64", "trainer.val_check_interval=null")
    failed = compare.check(runs("experiment=drift", *small))
    assert "balanced" not in failed
    assert "Left out: Weighted Random Sampler: ValueError: The baseline's" in capsys.readouterr().out


def test_names_and_hparams_are_those_of_the_run(runs, monkeypatch):
    """Also if the program's own command line says something else."""
    monkeypatch.setattr(training, "train", lambda cfg: (training.hparams(cfg), cfg.logger.tensorboard.version))
    logged = {name: compare._train(run) for name, (run,) in runs("fair.alpha=2", "model.lr=0.1").items()}
    names = ["without", "Weighted\nRandom\nSampler", "balanced", "long_tail", "worst_class"]
    assert list(logged) == names
    hparams = [logged[name][0] for name in names]
    assert [values["baseline"] for values in hparams] == ["none", "weighted_sampler", "none", "none", "none"]
    assert [values["fair"] for values in hparams] == ["off", "off", *names[2:]]
    assert [values.get("fair.alpha") for values in hparams] == [None, None, 2.0, 2.0, 2.0]
    assert [logged[name][1] for name in names] == [
        "fair=off,model.lr=0.1,seed=1",
        "baseline=weighted_sampler,model.lr=0.1,seed=1",
        *(f"fair={name},fair.alpha=2,model.lr=0.1,seed=1" for name in names[2:]),
    ]


def test_notes_are_those_of_the_table():
    """They name the presets and their settings, and explain ± only if there are several seeds."""
    text = compare.notes(["without", "deferred"], ["fair=deferred", "fair.alpha=2"], 1)
    assert text.startswith('deferred: with FairSampling(preset="deferred"), fair.alpha=2. images:')
    assert "±" not in text
    text = compare.notes(["without", *compare.PRESETS], [], 3)
    assert text.startswith('balanced, long_tail, worst_class: with FairSampling(preset="..."). images:')
    assert text.endswith("over the seeds.")
    assert compare.notes(["without"], [], 1).startswith("images:")


def test_help_is_its_own(runs):
    runs()
    text = hydra.compose("compare", return_hydra_config=True).hydra.help.template
    assert "examples/compare.py" in text
    assert "-m" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("sigint_counts")
def test_interrupt_prints_the_finished_methods(tmp_path):
    """Ctrl-C in the second training; the first one stands in the table."""
    command = [sys.executable, "-u", str(ROOT / "examples/compare.py"), *FAST, "seed=1", "logger=none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [*command, "epochs=20"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("Training 2 of 5") for line in lines)
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
    assert process.returncode == 1
    assert "Interrupted. Trainings finished: 1 of 5." in rest
    assert len(cells(rest, "mean")) == 3


@pytest.mark.slow
def test_sweep_is_refused(tmp_path):
    """In one sentence, without the table of a sweep."""
    done = run_script("compare.py", tmp_path, "-m", "seed=1,2")
    assert done.returncode != 0
    assert "cannot be swept" in done.stderr
    assert "unfinished" not in done.stdout


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
    assert "Left out: Weighted Random Sampler: ValueError: The baseline's sampler draws by index" in done.stdout
    assert len(cells(done.stdout, "mean")) == 4
    assert "tensorboard --logdir outputs" in done.stdout

    done = run_script("compare.py", tmp_path, *FAST, "data.batch_size=0")
    assert done.returncode != 0
    assert "ValueError, in data: batch_size must be" in done.stderr
    assert "Traceback" not in done.stderr
