"""The figures' and the benchmarks' scripts run, and the numbers that do not depend on chance are right."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from recipe_helpers import fake_mnist

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def settings_put_back(monkeypatch):
    """What a run of the example sets in the process is put back."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    yield
    torch.set_num_threads(threads)
    logger.setLevel(level)


@pytest.mark.usefixtures("settings_put_back")
def test_figures_are_drawn_from_runs_and_small_enough_for_a_readme(load, tmp_path, monkeypatch, capsys):
    figures = load("make_figures")
    trained = []
    real = figures.train
    monkeypatch.setattr(figures, "train", lambda cfg, *more: trained.append(cfg) or real(cfg, *more))
    figures.main(["--out", str(tmp_path), "--cycles", "1"])
    assert [bool(cfg.fair) for cfg in trained] == [True, True, False, False, True, True]
    assert all(cfg.data._target_.endswith("DriftDataModule") for cfg in trained)
    assert trained[1].fair.deficit == "count"
    for name in ("fair_rebalance.png", "drift_recovery.png"):
        assert (tmp_path / name).stat().st_size < 200_000
        picture = imread(tmp_path / name)
        assert picture.shape[1] >= 1300
        # A title or a legend that runs out of the picture would put ink on its edge.
        assert all((edge[..., :3] == 1.0).all() for edge in (picture[:, :3], picture[:, -3:]))
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in printed.splitlines() if line.startswith("| ")}
    # Twelve batches from 99:1 to within 1 % of 50:50; a count deficit never gets there.
    assert int(rows[figures.RELATIVE][0]) in range(10, 15)
    assert rows[figures.COUNT][0] == "never"
    assert float(rows[figures.COUNT][1].removesuffix(" %")) > 80
    # Over a turn the trained mix stays; without the plugin it goes, and with small buffers half as far.
    assert float(rows[figures.FAIR][1].removesuffix(" |")) < 0.02
    assert float(rows[figures.SHORT][0]) > 0.02


@pytest.mark.usefixtures("settings_put_back")
def test_what_a_figure_shows_is_what_the_run_did(load, tmp_path):
    figures = load("make_figures")
    size = ("data.cycles=1", "data.turn_size=1024")
    fair, plain = (figures.trace_of(3, *overrides, *size) for overrides in ((), ("fair=off",)))
    assert np.array_equal(plain.share, plain.stream)  # as it arrives
    assert plain.turn == 32
    assert plain.stream[:32].max() < 0.2
    assert plain.stream[32:].min() > 0.8
    assert fair.turn < 32  # a FairStream reads ahead
    assert np.abs(fair.share[fair.turn :] - 0.5).max() <= 1 / figures.BATCH
    memory = 1 - 1 / figures.MEMORY
    expected = memory * fair.trained[:-1] + (1 - memory) * fair.share[1:]
    assert fair.trained[1:] == pytest.approx(expected)
    assert len(fair.weight) == len(fair.share)
    assert fair.weight[-1] == pytest.approx(1.0, abs=0.05)
    assert set(plain.weight) == {1.0}
    for name in ("a", "b"):
        traces = {figures.PLAIN: plain, figures.FAIR: fair}
        figures.save(figures.figure_drift(traces, cycles=1), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_relative_deficit_settles_where_the_count_deficit_never_does(load):
    systems = load("systems", "benchmarks")
    after = systems.HISTORY
    ours, count = (systems.rebalance(system, seed=0) for system in (systems.OURS, systems.COUNT))
    assert systems.batches_to_arrive(ours.trained[after:]) in range(10, 15)
    assert max(systems.batch_distances(ours.share[after + 30 :])) <= 2 / systems.BATCH
    assert systems.one_class_share(count.share[after:]) > 0.98
    assert systems.batches_to_arrive(count.trained[after:]) is None
    assert max(ours.weight[after + 30 :]) < 1.05 < max(count.weight[after + 30 :])


def test_arrival_does_not_count_a_mix_that_passes_through(load):
    systems = load("systems", "benchmarks")
    assert systems.batches_to_arrive([0.3, 0.5, *[0.7] * 20]) is None
    assert systems.batches_to_arrive([0.3, 0.4, *[0.5] * 20]) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_of_99_to_1_data_is_even(load, workers):
    draws, systems = load("draws", "benchmarks"), load("systems", "benchmarks")
    assert draws.first_batch(systems.OURS, seed=0) == 0.0
    assert draws.first_batch_after_history(systems.COUNT, seed=0) >= 0.49
    shares = draws.shares_with_workers(systems.OURS, seed=0, workers=workers, steps=20)
    assert np.abs(shares - 0.5).max() <= 1 / draws.BATCH


def test_systematic_draws_quieten_a_loss_that_depends_on_the_class(load):
    draws = load("draws", "benchmarks")
    ours, iid = (draws.loss_deviation(system, 0.05, seed=0, steps=60) for system in (draws.OURS, draws.IID))
    # Expected about 0.15; a deviation of 60 values is itself known to about 10 %.
    assert ours / iid < 0.3


def test_weights_average_one_with_the_p_of_the_draw_only(load):
    draws = load("draws", "benchmarks")
    seen = draws.mean_weight(seed=0, steps=600)
    mean, error = seen.with_draw
    assert seen.swing[0] < 0.7
    assert seen.swing[1] > 1.3
    # Four standard errors: one run in 16,000 would fail, and the seed is fixed.
    assert abs(mean - 1.0) < 4 * error < 0.01
    assert seen.with_current[0] - 1.0 > 0.05


def test_table_of_draws_is_printed(load, capsys, tmp_path):
    worth = ["--seeds", "1", "--steps", "40", "--workers", "0"]
    costs = ["--rounds", "1", "--draws", "20", "--sizes", "6000", "--classes", "10"]
    load("draws", "benchmarks").main([*worth, *costs, "--picture", str(tmp_path / "draws.png")])
    table = capsys.readouterr().out
    assert "ns an index" in table
    assert (tmp_path / "draws.png").exists()
    assert "mean importance weight" in table


def test_table_of_overhead_is_printed(load, capsys, monkeypatch):
    overhead = load("overhead", "benchmarks")
    # Process-wide settings of the script: not those of the tests that follow.
    monkeypatch.setattr(overhead, "quiet", lambda: None)
    monkeypatch.setattr(overhead, "BATCH", 8)
    monkeypatch.setattr(overhead, "ITEMS", 6000)
    threads = torch.get_num_threads()
    try:
        overhead.main(["--rounds", "1", "--steps", "1"])
    finally:
        torch.set_num_threads(threads)
    assert "callback and mixin, K = 10, processor" in capsys.readouterr().out


def test_table_of_digits_is_printed(load, capsys, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that the test's end takes away what seed_everything sets
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    short = ["trainer.max_epochs=1", "trainer.accelerator=cpu"]
    try:
        load("digits", "benchmarks").main(["--seeds", "1", "--overrides", *short])
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)
    table = capsys.readouterr().out
    assert "| `fair=off` | `fair=default` |" in table
    assert "four smallest classes (images: 4, 2, 1, 1)" in table
    assert "| share of the draws, largest class | 41.3 % |" in table
    assert "| largest weight | 1.00 |" in table
    assert "seed by seed: off 0." in table


def test_spread_over_seeds_is_that_of_a_sample(load):
    digits = load("digits", "benchmarks")
    assert digits.spread([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert digits.spread([2.0, 2.0], 1, " %") == "2.0 %"
    assert digits.spread([2.0], 1) == "2.0"


@pytest.fixture
def mnist(load, tmp_path, monkeypatch):
    """The benchmark, and what makes a run of it short."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that the test's end takes away what seed_everything sets
    logger = logging.getLogger("lightning.pytorch")
    threads, level = torch.get_num_threads(), logger.level
    fake_mnist(tmp_path, packed=True)
    script = load("mnist", "benchmarks")
    short = ["trainer.accelerator=cpu", "threads=1", "data.largest=20", "data.imbalance_ratio=10"]
    keep = tmp_path / "results" / "mnist.jsonl"

    def main(*arguments, overrides=()):
        given = ["--root", str(tmp_path), "--epochs", "1", "--keep", str(keep), *arguments]
        script.main([*given, "--overrides", *short, *overrides])

    yield script, main, keep
    torch.set_num_threads(threads)
    logger.setLevel(level)


def test_table_of_mnist_is_printed_and_goes_on_from_what_was_kept(mnist, capsys, monkeypatch):
    script, main, keep = mnist
    methods = ["--methods", "off", "weighted_sampler", "default"]
    main("--seeds", "1", *methods)
    first = capsys.readouterr().out
    assert "| `fair=off` | 0." in first
    assert "| `baseline=weighted_sampler` | 0." in first
    assert re.search(r"against `(fair=off|baseline=weighted_sampler)`, seed by seed", first)
    assert "many-shot" not in first
    assert "| medium-shot (images: 20) | few-shot (images: 15 to 2) |" in first
    trained = []
    real = script.train
    monkeypatch.setattr(script, "train", lambda cfg: trained.append((cfg.seed, bool(cfg.fair))) or real(cfg))
    main("--seeds", "1", *methods)
    assert capsys.readouterr().out == first
    assert not trained
    keep.write_text(keep.read_text()[:-20])  # the last result, half written
    main("--seeds", "2", *methods)
    assert trained == [(1, True), (2, False), (2, False), (2, True)]
    main("--seeds", "2", *methods)
    assert len(trained) == 4
    main("--seeds", "1", "--methods", "off", overrides=["trainer.max_epochs=2"])
    assert len(trained) == 5  # other settings


def test_benchmark_of_mnist_names_the_methods_there_are(mnist, capsys):
    _, main, keep = mnist
    with pytest.raises(SystemExit):
        main("--methods", "off", "magic")
    assert "There is no method 'magic'. Methods: aggressive, balanced_softmax, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main("--seeds", "0")
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
    assert not keep.exists()


def test_differences_are_those_of_runs_with_the_same_seed(load):
    script = load("mnist", "benchmarks")
    assert script.paired([0.5, 0.9, 0.7], [0.4, 0.7, 0.7]) == "+0.100 ± 0.100, 2 of 3 higher"
    assert script.paired([0.4], [0.7]) == "-0.300, 0 of 1 higher"


def test_every_method_of_the_mnist_benchmark_is_a_choice_of_config(load):
    script = load("mnist", "benchmarks")
    assert [script.choice(method) for method in script.METHODS] == [
        "fair=off",
        "baseline=weighted_sampler",
        "fair=default",
        "fair=deferred",
        "fair=hard_classes",
        "baseline=balanced_softmax",
    ]
