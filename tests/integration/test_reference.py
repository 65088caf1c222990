"""References that a correction cannot reach are told at set-up, and the remedies work."""

import warnings

import pytest
import torch
from lightning_helpers import Plain, Weighted, fit, loader
from torch.nn import functional as F

from lightning_fair import FairSampling


class Adjusted(Weighted):
    """Serves every correction."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.adjusted_logits(self.net(x)), y, reduction="none")


def train(module=Adjusted, **settings):
    fit(module(), loader(), FairSampling(class_names=["cat", "dog", "cow", "emu"], seed=0, **settings), max_steps=2)


TOLD = {"target_probs": (0.9, 0.05, 0.03, 0.02), "reference": "uniform"}


@pytest.mark.parametrize("module", [Adjusted, Weighted])
def test_reference_beyond_the_bound_is_told_once(module):
    match = r"gives class emu 12\.5 times the share of its target, so .* at max_weight=10, .* set max_weight=13\."
    with pytest.warns(UserWarning, match=match) as caught:
        train(module, **TOLD)
    assert len([each for each in caught if "max_weight" in str(each.message)]) == 1


@pytest.mark.parametrize(
    "remedy",
    [
        {"target_probs": "sqrt"},
        {"correction": "logits"},
        {"max_weight": 13.0},
        {"exponent": 0.5},
        {"correction": "none"},
    ],
    ids=str,
)
def test_remedies_are_silent(remedy):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*max_weight.*")
        train(**{**TOLD, **remedy})


@pytest.mark.parametrize(("module", "settings"), [(Adjusted, {}), (Plain, {"logits": "net"})])
def test_logits_need_a_share_of_each_drawn_class(module, settings):
    """Else the samples of the class would count at a mix that nobody asked for."""
    none_of_dog = {"reference": (0.5, 0.0, 0.25, 0.25), "correction": "logits", **settings}
    with pytest.raises(ValueError, match=r"needs a share of the reference, and class dog has none\. Give it a share"):
        train(module, **none_of_dog)
    train(module, **{**none_of_dog, "reference": (0.5, 0.1, 0.2, 0.2)})
    train(module, **none_of_dog, target_probs=(0.4, 0.0, 0.3, 0.3))
    if not settings:
        train(module, **{**none_of_dog, "correction": "weights"})


@pytest.mark.parametrize(
    ("settings", "match", "remedy"),
    [
        ({"reference": "uniform", "correction": "none"}, "have no effect", {"correction": "weights"}),
        (
            {"correction": "none", "feedback_to": "objective", "lambda2": 0.3},
            "have no effect",
            {"feedback_to": "draw", "horizon": 16},
        ),
        ({"feedback_to": "objective"}, "training losses move the reference by lambda2, which is 0", {"lambda2": 0.25}),
    ],
    ids=str,
)
def test_settings_without_effect_are_told_once(settings, match, remedy):
    with pytest.warns(UserWarning, match=match) as caught:
        train(target_probs="sqrt", **settings)
    assert len([each for each in caught if "effect" in str(each.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*effect.*")
        train(target_probs="sqrt", **{**settings, **remedy})
