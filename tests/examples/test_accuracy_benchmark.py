"""The benchmark of accuracy."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from recipe_helpers import fake_mnist, process_settings_restored
from recipes import configs
from recipes.checks import check_config


@pytest.fixture
def accuracy(load, tmp_path, monkeypatch):
    """The script, with two short trials, and a function that runs it; the runs are in this process."""
    script = load("benchmarks.accuracy")
    fake_mnist(tmp_path, packed=True)
    short = ("experiment=digits", "epochs=1", "trainer.accelerator=cpu", "trainer.check_val_every_n_epoch=1")
    monkeypatch.setitem(script.images.DATA, "digits_1", short)
    methods = ("plain", "weighted_sampler", "long_tail", "plain+val")
    trial = script._images("digits_1", "digits, 1 epoch", methods, seeds=2, minutes=0)
    monkeypatch.setattr(script, "TRIALS", {"digits_1": trial})
    trained = []

    def run_all(keys, results, root, processes):
        for key in keys:
            if key not in results.runs:
                trained.append(key)
                results.add(key, script.TRIALS[key[0]].run(*key[1:], root), 1.0)
        return []

    monkeypatch.setattr(script, "run_all", run_all)
    script.trained, script.kept = trained, tmp_path / "kept" / "runs.jsonl"
    script.run = lambda *arguments: script.main(["--root", str(tmp_path), "--results", str(script.kept), *arguments])
    with process_settings_restored():
        yield script


@pytest.mark.slow
def test_runs_are_kept_and_tables_follow_from_them(accuracy, capsys, tmp_path, monkeypatch):
    accuracy.run("--seeds", "1", "--figure", str(tmp_path / "figure.png"))
    first = capsys.readouterr().out
    rows = [line for line in first.splitlines() if line.startswith("| `")]
    names = ["plain", "plain` with tuned offsets", "weighted_sampler", "weighted_sampler` with tuned", "long_tail"]
    assert all(row.startswith(f"| `{name}") for row, name in zip(rows, names, strict=False))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(accuracy.trained) == 4

    run = json.loads(accuracy.kept.read_text().splitlines()[2])
    recall = np.mean(run["numbers"]["recall"])
    assert (run["data"], run["method"], run["seed"]) == ("digits_1", "long_tail", 1)
    assert f"| `long_tail` | {recall:.3f} |" in first

    monkeypatch.setattr(accuracy, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("Text\n\n" + first.split("\n\n")[1] + "\n\nmore")
    accuracy.run("--check")
    capsys.readouterr()
    table = first.split("\n\n")[1]
    for other in (table.replace("0.", "1.", 1), table + "\n| `one more` |", ""):
        (tmp_path / "README.md").write_text(f"Text\n\n{other}\n\nmore")
        with pytest.raises(SystemExit):
            accuracy.run("--check")
        assert "README.md has other tables of: digits_1" in capsys.readouterr().err
    assert len(accuracy.trained) == 4

    accuracy.kept.write_text(accuracy.kept.read_text()[:-20])  # the last run, half written
    accuracy.run("--seeds", "2", "--methods", "plain", "plain+val")
    assert accuracy.trained[4:] == [
        ("digits_1", "plain+val", 1),
        ("digits_1", "plain", 2),
        ("digits_1", "plain+val", 2),
    ]
    assert "| `long_tail` (1 seed)" in capsys.readouterr().out
    assert all(json.loads(line) for line in accuracy.kept.read_text().splitlines() if line[-1] == "}")


def test_wrong_arguments(accuracy, capsys):
    for arguments, message in (
        (("--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("--methods", "magic"), "unknown method: magic. Methods: long_tail, plain"),
        (("--data", "magic"), "invalid choice: 'magic'"),
        (("--figure", "a.xyz"), "the name must end in one of"),
        (("--figure", "nowhere/a.png"), "the folder nowhere does not exist"),
    ):
        with pytest.raises(SystemExit):
            accuracy.run(*arguments)
        assert message in capsys.readouterr().err
    assert not accuracy.kept.exists()


def test_differences_are_paired(load):
    results = load("benchmarks.trials.results")
    trial = results.Trial("", ("a", "b"), 3, None, None, baselines=("a",), compared=("x",), minutes=1.0)
    table = {
        "a": {1: {"x": 0.1, "y": 1.0}, 2: {"x": 0.5, "y": 1.0}, 3: {"x": 0.9, "y": 1.0}},
        "b": {1: {"x": 0.2, "y": 0.0}, 2: {"x": 0.7, "y": 0.0}, 3: {"x": 0.9, "y": 0.0}},
    }
    text = results.to_markdown(table, trial)
    # The differences are 0.1, 0.2 and 0; their mean is 0.1 and its standard error 0.1 / sqrt(3), times 4.303.
    assert text.splitlines()[-1] == "| `b` | 0.600 ± 0.361 | +0.100 [-0.148, +0.348], 2 of 3 | 0.000 |"


def test_offsets_are_tuned_for_the_worst_class(load):
    """A network that favors one class gets balanced recalls by its offsets."""
    scores = load("benchmarks.trials.scores")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 200)
    logits = 2.0 * np.eye(3)[labels] + rng.normal(size=(600, 3)) + [3.0, 0.0, 0.0]
    before, after = scores.recalls(logits, labels), scores.recalls(logits + scores.tune_offsets(logits, labels), labels)
    assert before.min() < 0.3
    assert after.min() > 0.7


def test_every_run_of_the_tables_composes(load):
    """Each method of each trial on images is a config of `examples/train.py`."""
    accuracy = load("benchmarks.accuracy")
    images = accuracy.images
    conf = str(load("benchmarks.trials.configured").CONF)
    composed = set()
    configs.register()
    with initialize_config_dir(conf, version_base="1.3"):
        for data, trial in accuracy.TRIALS.items():
            run = trial.run.args[0] if getattr(trial.run, "func", None) is images.run else None
            for method in trial.methods if run else ():
                check_config(compose("train", [*images.overrides(run, method, 1, Path("data")), "output_dir=x"]))
                composed.add(data)
    assert {"digits_10", "cifar_40", "repeats_mnist_40"} <= composed


def test_readme_has_the_tables_of_the_kept_runs(load, capsys):
    load("benchmarks.accuracy").main(["--check"])
    assert "nan" not in capsys.readouterr().out


@pytest.mark.slow
def test_failed_run_is_named_and_others_are_kept(load, tmp_path):
    """In processes of its own, as the script runs."""
    script, results = load("benchmarks.accuracy"), load("benchmarks.trials.results")
    kept = results.Results(tmp_path / "runs.jsonl")
    keys = [("digits_10", "magic", 1), ("digits_10", "plain", 1)]
    failed = script.run_all(keys, kept, tmp_path, processes=1)
    assert len(failed) == 1
    assert failed[0].startswith("digits_10 magic 1: ")
    assert list(results.Results(tmp_path / "runs.jsonl").runs) == keys[1:]
    assert script.run_all(keys[1:], kept, tmp_path, processes=1) == []


def test_lines_that_are_no_runs_are_skipped(load, tmp_path):
    results, path = load("benchmarks.trials.results"), tmp_path / "runs.jsonl"
    run = {"data": "a", "method": "b", "seed": 1, "numbers": {"x": 1.0}}
    path.write_text("\n".join(["5", "[1]", "{}", "null", "{half", "", json.dumps(run)]))
    assert results.Results(path).runs == {("a", "b", 1): {"x": 1.0}}
