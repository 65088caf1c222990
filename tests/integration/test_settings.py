import dataclasses
import inspect

import pytest

from lightning_fair import FairSampling, FairStream, FeedbackController, schedules
from lightning_fair.integration.settings import FairSettings


def test_arguments_are_the_settings():
    """The signature of the callback and the fields of its settings have the same names and defaults."""
    arguments = list(inspect.signature(FairSampling).parameters.values())
    fields = dataclasses.fields(FairSettings)
    assert [(a.name, a.default) for a in arguments] == [(f.name, f.default) for f in fields]
    assert len(arguments) == 28


def test_settings_are_frozen():
    """A setting cannot be changed after it was checked."""
    fair = FairSampling(alpha=2.0, class_names=["cat", 1])
    assert (fair.settings.alpha, fair.settings.class_names) == (2.0, ["cat", "1"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        fair.settings.alpha = 4.0


def test_no_objects_are_made_to_check(monkeypatch):
    """Settings are checked without a controller."""

    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(FeedbackController, "__init__", fail)
    FairSampling(alpha=4.0, target_probs=[0.9, 0.1], lambda2=0.5)


@pytest.mark.parametrize(
    ("settings", "is_default"),
    [({}, True), ({"max_weight": 5.0}, False), ({"alpha": 4.0}, False), ({"target_probs": [0.5, 0.5]}, False)],
    ids=str,
)
def test_default_law(settings, is_default):
    """The law is the default one if neither its settings nor the target differ."""
    assert FairSettings(**settings).has_default_law is is_default


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": 4.0},
        {"lambda1": 0.5},
        {"lambda2": 0.1},
        {"min_prob": 1e-3},
        {"horizon": 50.0},
        {"loss_ema_decay": 0.5},
    ],
    ids=str,
)
def test_law_reaches_controller(setting):
    """Each setting of the law is that of the controller."""
    controller, default = (FairSettings(**each).make_sampler([0, 1, 1], 2).controller for each in (setting, {}))
    ((name, value),) = setting.items()
    assert getattr(controller, name) == (schedules.as_schedule(value) if name == "alpha" else value)
    assert getattr(controller, name) != getattr(default, name)


@pytest.mark.parametrize("target", [0.5, [[0.5, 0.5]]], ids=str)
def test_target_without_classes(target):
    """A target that is neither a name, a vector nor a mapping is refused at once."""
    with pytest.raises(
        (TypeError, ValueError), match=r"target_probs must (be .*, a vector or a mapping|have one entry)"
    ):
        FairSampling(target_probs=target)


def test_class_names():
    """Names come from the settings, or else from the data set, or else they are the class numbers."""

    class Data:
        classes = ("cat", "dog")

    assert FairSettings(class_names=["a", "b"]).names_for(2, Data()) == ["a", "b"]
    assert FairSettings().names_for(2, Data()) == ["cat", "dog"]
    assert FairSettings().names_for(3, Data()) == ["0", "1", "2"]


def test_controller_of_stream():
    """The classes of a stream are counted by the settings, or by the names that the source has."""
    source = [(0.0, 0)] * 8
    assert FairSettings(num_classes=3).make_controller(FairStream(source, batch_size=4)).num_classes == 3
    with pytest.raises(ValueError, match="does not show how many classes"):
        FairSettings().make_controller(FairStream(source, batch_size=4))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target_probs": [0.5, 0.6, -0.1]}, "must not be negative"),
        ({"target_probs": [0.5, float("nan")]}, "must be finite"),
        ({"target_probs": [0.5, 0.4]}, "must sum to one"),
        ({"target_probs": [0.5, 0.5], "num_classes": 3}, "one entry per class"),
        ({"target_probs": "balanced"}, "must be 'uniform'"),
        ({"min_prob": 0.25, "num_classes": 4}, r"min_prob must lie in \[0, 0\.25\) \(1/K for 4 classes\)"),
        ({"min_prob": 0.5, "target_probs": [0.5, 0.5]}, r"min_prob must lie in \[0, 0\.5\)"),
        ({"alpha": -1.0}, "alpha must lie"),
        ({"alpha": float("nan")}, "alpha must lie"),
        ({"lambda1": -1.0}, "lambda1 must lie"),
        ({"lambda2": float("inf")}, "lambda2 must lie"),
        ({"loss_ema_decay": 1.0}, "loss_ema_decay must lie in"),
        ({"horizon": 0}, "horizon must lie in"),
        ({"horizon": 0.5}, "horizon must lie in"),
        ({"feedback_delay": 0}, "feedback_delay must be an integer of at least 1"),
        ({"max_weight": 0.9}, "max_weight must lie in"),
        ({"exponent": 1.5}, "exponent must lie in"),
        ({"reference": "balanced"}, "reference must be"),
        ({"empty_classes": "ignore"}, "empty_classes must be"),
        ({"resume": "again"}, "resume must be 'continue' or 'restart', got 'again'"),
        ({"seed": -1}, "seed must be"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
        ({"class_names": ["a", "b"], "num_classes": 4}, "class_names"),
        ({"preset": "best"}, "preset must be 'balanced', 'deferred', 'long_tail', 'worst_class' or 'calibrated'"),
        ({"correction": "both"}, "correction must be 'weights', 'logits' or 'none'"),
        ({"logits": "fc"}, "correction='weights' does not do"),
        ({"preset": "long_tail", "normalize": True}, "normalize and exponent change the weights"),
        ({"feedback": ""}, "feedback must be 'train' or the name of a metric"),
        ({"feedback_to": "model"}, "feedback_to must be"),
        ({"feedback_gain": -1.0}, "feedback_gain must lie"),
        ({"max_repeats": 0.5}, "max_repeats must lie in"),
        # Unstable: alpha >= 2 * horizon - 1. The default horizon depends on the batch size.
        ({"alpha": 8.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": 4.0, "lambda1": 2.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": schedules.Linear(0.0, 8.0, 100), "horizon": 4}, "largest stable alpha"),
    ],
    ids=str,
)
def test_bad_setting_is_refused(settings, match):
    """A bad setting is refused by the constructor."""
    with pytest.raises(ValueError, match=match):
        FairSampling(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 8.0, "horizon": 4.6},
        {"alpha": 31.0, "target_probs": [0.99, 0.01]},  # the horizon depends on the batch size
        {"alpha": 31.0, "target_probs": "prior", "num_classes": 4},  # as this might, too
        {"alpha": 1000.0, "num_classes": 4, "lambda1": 0.0},
    ],
    ids=str,
)
def test_stable_alpha_is_accepted(settings):
    """An alpha that may be stable is accepted."""
    assert FairSampling(**settings).controller is None
