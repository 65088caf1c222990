"""Targets of several labels a sample, by name and for one training."""

import logging

import numpy as np
import pytest
from label_set_helpers import K, tags
from lightning_helpers import fit, loader, warnings_about
from tag_helpers import Tagged, Tagger

from lightning_fair import FairSampling
from lightning_fair.integration.settings import FairSettings
from lightning_fair.schedules import Shift, Step

ROWS = tags(200)
NAMES = np.array(["edge", "cell", "axon", "node", "loop"])
LISTS = [set(NAMES[row].tolist()) for row in ROWS]  # in sorted order they are 2, 1, 0, 4, 3
UNREACHED = "No draws bring the target"


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({"target_probs": {"none": 0.25, "edge": 0.35}}, LISTS, [0.1, 0.1, 0.35, 0.1, 0.1, 0.25]),
        ({"target_probs": {"none": 0.25, 0: 0.35}}, ROWS, [0.35, 0.1, 0.1, 0.1, 0.1, 0.25]),
        ({"target_probs": {"none": 0.25, "edge": 0.35}, "class_names": NAMES}, ROWS, [0.35, 0.1, 0.1, 0.1, 0.1, 0.25]),
        ({"target_probs": [0.35, 0.1, 0.1, 0.1, 0.1, 0.25]}, ROWS, [0.35, 0.1, 0.1, 0.1, 0.1, 0.25]),
        ({"target_probs": Shift(Step(0.0, 1.0, at=9), start={"none": 0.5, 0: 0.3})}, ROWS, [0.3, *[0.05] * 4, 0.5]),
        ({"target_probs": "sqrt"}, ROWS, np.sqrt([*ROWS.sum(0), (~ROWS.any(1)).sum()])),
    ],
)
@pytest.mark.filterwarnings(f"ignore:{UNREACHED}")
def test_target_by_name(settings, labels, expected):
    controller = FairSettings(**settings).make_sampler(labels, 8).controller
    start = controller.state_dict()["target"]["start"]
    np.testing.assert_allclose(start, expected / np.sum(expected), atol=1e-9)


def test_warning_has_names():
    """One warning has the name of a label, its share, and the nearest one; another target has none."""
    with warnings_about(UNREACHED) as messages:
        module = Tagger()
        fit(module, loader(Tagged()), FairSampling(target_probs="uniform", class_names=NAMES), max_epochs=2)
    (message,) = messages
    assert "edge 0.2" in message
    assert "in place of 0.167" in message
    with warnings_about(UNREACHED) as messages:
        fit(module, loader(Tagged()), FairSampling(target_probs="sqrt", class_names=NAMES))
    assert messages == []


@pytest.fixture
def lines(caplog):
    with caplog.at_level(logging.INFO):
        yield lambda words: [r.getMessage() for r in caplog.records if words in r.getMessage()]


@pytest.mark.filterwarnings(f"ignore:{UNREACHED}")
def test_auto_keeps_the_repeats(lines):
    """A sample of the rarest label comes as often as allowed, for any of its labels."""
    fair = FairSampling(target_probs="auto", max_repeats=16, seed=0)
    fit(Tagger(), loader(Tagged()), fair, max_epochs=6)
    rarest = fair.sampler.class_counts.argmin()
    assert fair.sampler.repeats[rarest] == pytest.approx(16, rel=0.1)
    (line,) = lines('target_probs="auto" is prior ** 0.')
    repeats = float(line.split("rarest class about ")[1].split()[0])
    assert repeats == pytest.approx(fair.sampler.repeats.max(), rel=0.1)


@pytest.mark.filterwarnings(f"ignore:{UNREACHED}", "ignore:The samples of label")
def test_deferred_is_balanced_at_the_end():
    fair, counts = FairSampling(target_probs="deferred", seed=0, horizon=16.0), []

    class Counting(Tagger):
        def training_step(self, batch, batch_idx):
            counts.append(fair.sampler.drawn.copy())
            return super().training_step(batch, batch_idx)

    fit(Counting(), loader(Tagged()), fair, max_epochs=10)
    first, last = counts[159], counts[-1] - counts[164]
    controller = fair.controller
    np.testing.assert_allclose(first / first.sum(), controller.target_at(0.0), atol=0.01)
    np.testing.assert_allclose(last / last.sum(), controller.target_at(1.0), atol=0.02)
    assert np.abs(controller.target_at(0.0) - controller.target_at(1.0)).max() > 0.1


@pytest.mark.filterwarnings(f"ignore:{UNREACHED}")
def test_repeats_are_warned_of():
    """With the number of times that a sample of the label is in a batch, as measured."""
    fair = FairSampling(target_probs="uniform", seed=0)
    with warnings_about("are expected") as messages:
        fit(Tagger(), loader(Tagged(), batch_size=160), fair, max_epochs=50)
    (message,) = messages
    label = int(message.split("samples of label ")[1][0])
    repeats = float(message.split("are expected ")[1].split()[0])
    assert fair.sampler.repeats[label] == pytest.approx(repeats, rel=0.1)


@pytest.mark.filterwarnings(f"ignore:{UNREACHED}", "ignore:The reference needs weights")
def test_label_without_samples_is_skipped():
    data = Tagged()
    data.targets[:, 3] = 0
    with pytest.raises(ValueError, match=r"No samples of class 3"):
        fit(Tagger(), loader(data), FairSampling(target_probs="uniform"))
    fair = FairSampling(target_probs="uniform", empty_classes="skip")
    fit(Tagger(), loader(data), fair)
    assert fair.controller.q[3] == 0
    assert fair.controller.state_dict()["target"]["start"].tolist() == pytest.approx([0.2, 0.2, 0.2, 0, 0.2, 0.2])


@pytest.mark.filterwarnings(f"ignore:{UNREACHED}")
def test_large_weights_are_warned_of():
    """The remedy is tried: with that bound there is no warning, and hardly a weight is clipped."""
    message = "The reference needs weights of up to"
    settings = {"target_probs": "uniform", "reference": "prior", "seed": 0}
    with warnings_about(message) as messages:
        fit(Tagger(), loader(Tagged()), FairSampling(**settings, max_weight=1.5))
    (warning,) = messages
    bound = float(warning.split("set max_weight=")[1].rstrip("."))
    fair = FairSampling(**settings, max_weight=bound)
    module = Tagger()
    with warnings_about(message) as messages:
        fit(module, loader(Tagged()), fair)
    assert messages == []
    assert max(step.weights.max() for step in module.steps) < bound


def test_number_of_classes_may_be_stated():
    for number in (5, 6):
        assert FairSettings(num_classes=number, target_probs="sqrt").make_sampler(ROWS, 8).controller.num_classes == K
    with pytest.raises(ValueError, match=r"num_classes must be 5, as the labels have 5 columns, or 6"):
        FairSettings(num_classes=7).make_sampler(ROWS, 8)
