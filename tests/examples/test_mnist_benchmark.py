"""The benchmark on MNIST."""

import re

import pytest
from recipe_helpers import fake_mnist, process_settings_restored


@pytest.fixture
def mnist(load, tmp_path):
    """The benchmark, and a short run of it."""
    fake_mnist(tmp_path, packed=True)
    script = load("benchmarks.mnist")
    short = ["trainer.accelerator=cpu", "threads=1", "data.largest=20", "data.imbalance_ratio=10"]
    keep = tmp_path / "results" / "mnist.jsonl"

    def main(*arguments, overrides=()):
        common = ["--root", str(tmp_path), "--epochs", "1", "--keep", str(keep), *arguments]
        script.main([*common, "--overrides", *short, *overrides])

    with process_settings_restored():
        yield script, main, keep


@pytest.mark.slow
def test_mnist_resumes_from_results(mnist, capsys, monkeypatch):
    script, main, keep = mnist
    methods = ["--methods", "off", "weighted_sampler", "balanced"]
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


def test_unknown_method_is_named(mnist, capsys):
    _, main, keep = mnist
    with pytest.raises(SystemExit):
        main("--methods", "off", "magic")
    assert "There is no method 'magic'. Methods: balanced, balanced_softmax, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main("--seeds", "0")
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err
    assert not keep.exists()


def test_paired_differences(load):
    script = load("benchmarks.mnist")
    assert script.paired([0.5, 0.9, 0.7], [0.4, 0.7, 0.7]) == "+0.100 ± 0.100, 2 of 3 higher"
    assert script.paired([0.4], [0.7]) == "-0.300, 0 of 1 higher"


def test_methods_are_config_choices(load):
    script = load("benchmarks.mnist")
    assert [script.choice(method) for method in script.METHODS] == [
        "fair=off",
        "baseline=weighted_sampler",
        "fair=balanced",
        "fair=deferred",
        "fair=long_tail",
        "fair=worst_class",
        "baseline=balanced_softmax",
    ]
