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
    trial = results.Trial("", ("a", "b"), 3, None, None, baselines=("a", "b"), compared=("x",), minutes=1.0)
    table = {
        "a": {1: {"x": 0.1, "y": 1.0}, 2: {"x": 0.5, "y": 1.0}, 3: {"x": 0.9, "y": 1.0}},
        "b": {1: {"x": 0.2, "y": 0.0}, 2: {"x": 0.7, "y": 0.0}, 3: {"x": 0.9, "y": 0.0}},
    }
    lines = results.to_markdown(table, trial).splitlines()
    assert lines[0] == "| 3 seeds | x | against `a` | against `b` | y |"
    # The differences are 0.1, 0.2 and 0; their mean is 0.1 and its standard error 0.1 / sqrt(3), times 4.303.
    assert lines[-2] == "| `a` | 0.500 ± 0.400 |  | -0.100 [-0.348, +0.148], 0 of 3 | 1.000 |"
    assert lines[-1] == "| `b` | 0.600 ± 0.361 | +0.100 [-0.148, +0.348], 2 of 3 |  | 0.000 |"


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


# -- several labels a picture ----------------------------------------------------------------------------------


def test_canvases_have_the_labels_that_are_said(load):
    canvas = load("benchmarks.trials.canvas")
    (x, y, values), (test_x, test_y, _) = (data.tensors for data in canvas.make_data(1))
    labels = y.numpy() > 0
    assert labels.sum(axis=0).tolist() == canvas.label_counts().tolist()
    assert labels.sum(axis=0).max() == canvas.RATIO * labels.sum(axis=0).min()
    assert np.bincount(labels.sum(axis=1)).tolist() == [200, 0, 1625, 175]
    with_0 = labels[labels[:, 0]].sum(axis=0) / labels.sum(axis=0)
    assert with_0[[1, 4, 7]] == pytest.approx([0.75, 0.05, 0.85], abs=0.01)
    assert (labels[:, 8] & labels[:, 9]).sum() >= 10
    assert (values.mean(), values.std()) == pytest.approx((0.0, 1.0), abs=1e-3)
    assert x.shape == test_x.shape == (2000, 1, 24, 24)
    assert np.bincount(test_y.sum(1).int())[[0, 1]].tolist() == [200, 0]
    assert test_y.sum(0).min() > 0.8 * test_y.sum(0).max()
    # The ink of the digits lies on the noise of pictures with labels only.
    assert x[labels.any(axis=1)].amax(dim=(1, 2, 3)).min() > x[~labels.any(axis=1)].max()

    repeated = canvas.make_data(1)[0].tensors
    assert all((one == two).all() for one, two in zip(repeated, (x, y, values), strict=True))
    assert (canvas.make_data(2)[0].tensors[0] != x).any()


def test_digits_do_not_overlap(load):
    canvas, rng = load("benchmarks.trials.canvas"), np.random.default_rng(1)
    for size in (2, 3):
        for _ in range(20):
            covered = np.zeros((24, 24), int)
            for top, left in canvas._places(size, rng):
                covered[top : top + 8, left : left + 8] += 1
            assert covered.max() == 1
            assert covered.sum() == size * 64


def test_shares_that_draws_can_bring(load):
    """Label 1 always comes with label 0, which half of its pictures have alone."""
    canvas = load("benchmarks.trials.canvas")
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    target = np.array([0.4, 0.4, 0.2])  # if label 0 is never drawn for itself, both come equally often
    assert canvas.reachable_shares(labels, target, tolerance=0.0, least=0.0) == pytest.approx([1.0, 1.0, 1.0])
    # With a twentieth of its target, draws of label 0 are 0.025 of those of both, and half of them have label 1.
    shares = canvas.reachable_shares(labels[:2, :2], np.array([0.5, 0.5]), tolerance=0.0)
    assert shares == pytest.approx(np.array([1.0, 0.9875]) * 2 / 1.9875)
    # No draws have more of label 1 than of label 0. Up to 1.1 the share of label 2 costs nothing.
    shares = canvas.reachable_shares(labels, np.array([0.2, 0.4, 0.4]), least=0.0)
    assert shares == pytest.approx([1.4, 0.7, 1.1])


def test_rows_of_several_labels(load):
    labels = load("benchmarks.trials.labels")
    numbers = {
        "precision": [0.9] * 7 + [0.3] * 3,
        "trained": [1.3, 0.88, 0.95, *[1.0] * 8],
        "reachable": [1.2, 0.9, 0.9, *[1.1] * 8],
        "value": 0.25,
    }
    (row,) = labels.rows("rarest_label", numbers).values()
    assert list(row.values())[:5] == pytest.approx([0.72, 0.3, 0.9, 10, 9])
    assert np.isnan(row["farthest from what it steers to"])
    (row,) = labels.rows("balanced", numbers | {"nearest": [1.25, 0.9, 0.95, *[1.0] * 8]}).values()
    assert row["farthest from what it steers to"] == pytest.approx(0.04)
    assert row["mean of the values"] == 0.25


@pytest.mark.slow
def test_runs_of_several_labels(load, tmp_path):
    """One epoch: the plugin's shares are those it steers to, and weights to the prior give the plain mean."""
    labels = load("benchmarks.trials.labels")
    with process_settings_restored():
        runs = {name: labels.run(name, 1, tmp_path, epochs=1) for name in ("plain", "rarest_label", "prior_weights")}
        repeated = labels.run("rarest_label", 1, tmp_path, epochs=1)
    rows = {name: labels.rows(name, numbers)[""] for name, numbers in runs.items()}
    assert rows["prior_weights"]["farthest from what it steers to"] < 0.03
    assert rows["prior_weights"]["labels that are"] > 5
    assert rows["rarest_label"]["labels that are"] < 4
    assert rows["rarest_label"]["mean of the values"] > 1
    assert abs(runs["prior_weights"]["value"]) < 4 * runs["prior_weights"]["value_error"] < 0.2
    assert abs(runs["plain"]["value"]) < 0.05
    assert repeated == runs["rarest_label"]
