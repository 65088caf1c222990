"""The table with wrong labels, and the runs on it."""

from functools import partial

import numpy as np
import pytest
from benchmarks.trials import tabular as trial
from recipe_helpers import process_settings_restored
from recipes.tabular import TabularDataModule

Small = partial(TabularDataModule, rows=4000, test_rows=8000, rare=0.02)


def test_only_test_labels_are_clean():
    data = Small(noise=0.01, seed=3)
    data.setup()
    train, val, test = data.train_set.dataset, data.val_set, data.test_set
    assert [len(part) for part in (train, val, test)] == [4000, 1000, 8000]
    assert [int(part.is_wrong.sum()) for part in (train, val, test)] == [40, 10, 0]
    true = [np.where(part.is_wrong, 1 - part.targets, part.targets).sum() for part in (train, val, test)]
    assert true == [80, 20, 160]
    assert data.train_set.targets.tolist() == train.targets.tolist()


def test_noise_changes_nothing_else():
    noisy, clean, other = (Small(noise=noise, seed=seed) for noise, seed in ((0.1, 1), (0.0, 1), (0.0, 2)))
    for data in (noisy, clean, other):
        data.setup()
    assert (noisy.train_set.dataset.images == clean.train_set.dataset.images).all()
    assert (noisy.test_set.images == clean.test_set.images).all()
    assert not (clean.test_set.images == other.test_set.images).any()


def test_no_row_is_in_two_parts():
    data = Small(seed=1)
    data.setup()
    rows = np.concatenate(
        [trial.row_keys(part.images) for part in (data.train_set.dataset, data.val_set, data.test_set)]
    )
    assert np.unique(rows).size == 13000


@pytest.mark.parametrize("settings", [{"rare": 1.0}, {"noise": 0.5}, {"seed": -1}, {"rows": -5}, {"test_rows": 0}])
def test_bad_arguments_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must"):
        TabularDataModule(**settings)


@pytest.fixture
def tabular(monkeypatch):
    """The trial, on a small table, two epochs."""
    small = ["epochs=2", "data.rows=4000", "data.test_rows=4000", "data.batch_size=64"]
    full = trial.train_quietly
    monkeypatch.setattr(trial, "train_quietly", lambda overrides, *callbacks: full([*overrides, *small], *callbacks))
    with process_settings_restored():
        yield trial


def test_recall_at_90():
    """It is 0 if no threshold has a precision of 0.9."""
    labels = np.array([0] * 10 + [1] * 10)
    probs = np.linspace(0.1, 0.9, 20).astype(np.float32)
    assert trial.scores(labels, probs)["average_precision"] == pytest.approx(1.0)
    assert trial.scores(labels, probs)["recall_at_90"] == 1.0
    assert trial.scores(1 - labels, probs)["recall_at_90"] == 0.0
    probs[9] = 1.0  # the one mistake
    assert trial.scores(labels, probs)["recall_at_90"] == 1.0  # 10 of 11
    probs[8] = 1.0  # 10 of 12
    assert trial.scores(labels, probs)["recall_at_90"] == 0.0


@pytest.mark.slow
def test_draws_of_wrong_labels_are_counted(tabular):
    """About 40 of the 4000 labels are wrong, and nearly all of these are labeled as rare: two of three that are."""
    plain, balanced = (tabular.run(method, 1, None) for method in ("plain", "balanced"))
    assert plain["wrong_share_of_draws"] == pytest.approx([0.01, 0.01], abs=1e-3)
    assert plain["rare_share_of_draws"] == pytest.approx([0.015, 0.015], abs=1e-3)
    assert "rare_reference_at_end" not in plain
    assert balanced["rare_share_of_draws"] == pytest.approx([0.5, 0.5], abs=0.02)
    assert balanced["rare_reference_at_end"] == 0.5
    for numbers in (plain, balanced):
        assert numbers["wrong_share_of_rare_draws"] == pytest.approx(2 / 3, abs=0.02)
        assert tabular.rows("", numbers)[""]["average precision"] == numbers["average_precision"]


@pytest.mark.slow
def test_every_method_runs_silently(tabular, capfd):
    for method in tabular.METHODS:
        numbers = tabular.run(method, 1, None, noise=0.0)
        assert numbers["wrong_share_of_rare_draws"] == 0.0
        assert 0.005 < numbers["average_precision"] <= 1.0
        if method.startswith(("losses", "worst_class")):
            assert numbers["rare_reference_at_end"] != 0.5 or "draw" in method
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_run_repeats(tabular):
    assert tabular.run("losses_to_draw", 2, None) == tabular.run("losses_to_draw", 2, None)
