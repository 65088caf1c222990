"""The runs on a stream that drifts."""

import numpy as np
import pytest
from benchmarks.trials import drift as trial
from recipe_helpers import fake_mnist, process_settings_restored


@pytest.fixture
def drift(tmp_path, monkeypatch):
    """The trial, on a short stream of a small MNIST."""
    fake_mnist(tmp_path, packed=True)
    full = trial.train_quietly
    monkeypatch.setattr(
        trial,
        "train_quietly",
        lambda overrides, *callbacks: full([*overrides, "data.turn_size=128", "model.net.hidden=[16]"], *callbacks),
    )
    with process_settings_restored():
        yield trial


@pytest.mark.slow
def test_accuracy_after_each_turn(drift, tmp_path):
    numbers = drift.run("plain", 1, tmp_path)
    assert len(numbers["after_turns"]) == 20
    assert numbers["mean_after_turns"] == pytest.approx(np.mean(numbers["after_turns"][1:]))
    assert numbers["worst_after_turn"] == min(numbers["after_turns"][1:])
    assert numbers["recovery"] == 4  # all batches of a turn: never
    assert numbers["worst_recall_after_turns"] <= numbers["mean_after_turns"]
    metrics = drift.rows("plain", numbers)[""]
    assert metrics["recovery"] == 4
    assert metrics["balanced accuracy"] == numbers["balanced_accuracy"]


@pytest.mark.slow
def test_every_method_runs_silently(drift, tmp_path, capfd):
    runs = {method: drift.run(method, 1, tmp_path) for method in drift.METHODS}
    assert capfd.readouterr() == ("", "")
    assert runs["balanced_large_buffers"]["recovery"] < runs["plain"]["recovery"]


@pytest.mark.slow
def test_run_repeats(drift, tmp_path):
    assert drift.run("balanced", 2, tmp_path) == drift.run("balanced", 2, tmp_path)
