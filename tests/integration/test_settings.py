import pytest

from lightning_fair import FairSampling, schedules


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"target_probs": [0.5, 0.6, -0.1]}, "must not be negative"),
        ({"target_probs": [0.5, float("nan")]}, "must be finite"),
        ({"target_probs": [0.5, 0.4]}, "must sum to one"),
        ({"target_probs": [0.5, 0.5], "num_classes": 3}, "one entry per class"),
        ({"target_probs": "balanced"}, "must be 'uniform'"),
        ({"min_prob": 0.25, "num_classes": 4}, r"min_prob must lie in \[0, 1/K\)"),
        ({"min_prob": 0.5, "target_probs": [0.5, 0.5]}, r"min_prob must lie in \[0, 1/K\)"),
        ({"alpha": -1.0}, "alpha must be"),
        ({"alpha": float("nan")}, "finite"),
        ({"lambda1": -1.0}, "lambda1 must be"),
        ({"lambda2": float("inf")}, "lambda2 must be"),
        ({"loss_ema_decay": 1.0}, "loss_ema_decay must lie in"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"horizon": 0.5}, "horizon must be at least 1"),
        ({"feedback_delay": 0}, "feedback_delay must be an integer of at least 1"),
        ({"max_weight": 0.0}, "must be positive"),
        ({"exponent": 1.5}, "exponent must lie in"),
        ({"reference": "balanced"}, "reference must be"),
        ({"empty_classes": "ignore"}, "empty_classes must be"),
        ({"seed": -1}, "seed must be"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be"),
        ({"class_names": ["a", "b"], "num_classes": 3}, "class_names"),
        # Unstable: alpha >= 2 * horizon - 1. The default horizon of a uniform target of few classes is 16.
        ({"alpha": 31.0, "num_classes": 4}, "largest stable alpha"),
        ({"alpha": 31.0, "target_probs": [0.5, 0.5]}, "largest stable alpha"),
        ({"alpha": 8.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": 4.0, "lambda1": 2.0, "horizon": 4}, "largest stable alpha"),
        ({"alpha": schedules.Linear(0.0, 8.0, 100), "horizon": 4}, "largest stable alpha"),
    ],
    ids=str,
)
def test_bad_setting_is_refused(settings, match):
    """Bad setting is refused by the constructor."""
    with pytest.raises(ValueError, match=match):
        FairSampling(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 30.9, "num_classes": 4},
        {"alpha": 8.0, "horizon": 4.6},
        {"alpha": 31.0, "target_probs": [0.99, 0.01]},  # the rare class needs a longer horizon
        {"alpha": 31.0, "target_probs": "prior", "num_classes": 4},  # as this might, too
        {"alpha": 1000.0, "num_classes": 4, "lambda1": 0.0},
    ],
    ids=str,
)
def test_stable_alpha_is_accepted(settings):
    """Alpha that may be stable is accepted."""
    assert FairSampling(**settings).controller is None
