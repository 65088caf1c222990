"""The runs on colored MNIST, with small made-up data."""

import logging
import warnings

import pytest
import torch
from recipe_helpers import fake_mnist, process_settings_restored

KEYS = ("accuracy", "mean", "worst", "average")


@pytest.fixture
def trial(load, tmp_path, monkeypatch):
    """The module, for a training set of 100 images, a validation set of 20, and two short epochs."""
    fake_mnist(tmp_path, packed=True)
    groups = load("benchmarks.trials.groups")
    sizes = {"TRAINING": (40, 10, 10, 40), "VALIDATION": (5, 5, 5, 5)}
    small = {**sizes, "BATCH": 20, "BATCHES": 4, "VALIDATE_EVERY": 2, "EPOCHS": 2}
    for name, value in small.items():
        monkeypatch.setattr(groups, name, value)
    with process_settings_restored(), warnings.catch_warnings():
        yield groups


def test_groups_have_sizes(trial, tmp_path):
    """Training and validation data have the stated groups; the test has every image in both colors."""
    train, val, test = trial.make_data(tmp_path, seed=0)
    assert [torch.bincount(part.tensors[2]).tolist() for part in (train, val, test)] == [
        [40, 10, 10, 40],
        [5, 5, 5, 5],
        [20, 20, 20, 20],
    ]
    x, _, groups = test.tensors
    assert torch.equal(x[:40].sum(1), x[40:].sum(1))
    assert torch.equal(groups[:40] + 1, groups[40:])


def test_group_is_class_and_color(trial, tmp_path):
    for part in trial.make_data(tmp_path, seed=1):
        x, y, groups = part.tensors
        assert torch.equal(groups // 2, y)
        digits = (x.amax((1, 2, 3)) * 255 / 25).round()  # the brightness of the made-up images
        assert torch.equal(y, (digits >= 5).long())
        is_lit = x.amax((2, 3)) > 0
        assert is_lit.sum(1).max() == 1
        assert torch.equal(is_lit[:, 1], (groups % 2 == 1) & (digits > 0))


def test_seed_chooses_images(trial, tmp_path):
    first, same, other = (trial.make_data(tmp_path, seed)[0].tensors[0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_subsample_is_balanced(trial, tmp_path):
    """Each group is as large as the smallest, with the validation images if the method adds them."""
    train, val, _ = trial.make_data(tmp_path, seed=0)
    for name, each in (("subsample", 10), ("subsample+val", 15)):
        loader = trial.train_loader(trial.METHODS[name], train, val)
        groups = torch.cat([batch[2] for batch in loader])
        assert len(loader) == 4
        assert torch.bincount(torch.stack([sample[2] for sample in loader.dataset])).tolist() == [each] * 4
        assert torch.bincount(groups).min() > 10


def test_dro_raises_bad_group(trial):
    """The step of the weights is exponential in the mean loss of each group; one without samples has the loss 0."""
    model = trial.Classifier(dro_step=0.01)
    losses = torch.tensor([1.0, 3.0, 5.0], requires_grad=True)
    loss = model.dro_loss(losses, torch.tensor([0, 0, 2]), 0.01)
    expected = torch.tensor([0.02, 0.0, 0.05, 0.0]).exp()
    weights = expected / expected.sum()
    torch.testing.assert_close(model.dro_weights, weights)
    torch.testing.assert_close(loss, 2 * weights[0] + 5 * weights[2])
    loss.backward()
    torch.testing.assert_close(losses.grad, torch.stack([weights[0] / 2, weights[0] / 2, weights[2]]))


@pytest.mark.slow
def test_runs_of_all_methods(trial, tmp_path, capfd):
    """Every method makes the same number of steps, warns of nothing, prints nothing, and returns plain numbers."""
    steps = []
    real = trial.Classifier.training_step
    trial.Classifier.training_step = lambda *args: steps.append(1) or real(*args)
    with warnings.catch_warnings(record=True) as caught:
        for name in trial.METHODS:
            numbers = trial.run(name, 0, tmp_path)
            check_numbers(*(numbers[key] for key in KEYS))
            assert trial.rows(name, numbers)[""][trial.WORST] == numbers["worst"]
            assert len(steps) == 8
            steps.clear()
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lightning.pytorch").level == logging.WARNING


def check_numbers(accuracy, mean, worst, average):
    assert all(type(value) is float for value in [*accuracy, mean, worst, average])
    assert worst == min(accuracy)
    assert mean == pytest.approx(sum(accuracy) / 4)
    assert average == pytest.approx(0.4 * (accuracy[0] + accuracy[3]) + 0.1 * (accuracy[1] + accuracy[2]))


@pytest.mark.slow
def test_run_repeats(trial, tmp_path):
    """The seed decides a run."""
    first, second, other = (trial.run("worst_class", seed, tmp_path) for seed in (0, 0, 1))
    assert first == second
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize("method", ["worst_class_train", "worst_class", "long_tail"])
def test_feedback_moves_objective(trial, tmp_path, monkeypatch, method):
    """Feedback reaches the objective of the four groups; `long_tail` has none."""
    monkeypatch.setattr(trial, "EPOCHS", 6)  # losses take effect after 16 batches
    callbacks = []
    real = trial.FairSampling
    monkeypatch.setattr(trial, "FairSampling", lambda **settings: callbacks.append(real(**settings)) or callbacks[-1])
    trial.run(method, 0, tmp_path)
    (fair,) = callbacks
    assert fair.sampler.class_counts.tolist() == [40, 10, 10, 40]
    assert fair.controller.objective.tilt.any() == (method != "long_tail")
    assert fair.controller.objective.base.tolist() == [0.25] * 4
