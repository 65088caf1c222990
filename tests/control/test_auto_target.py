"""The target of ``target_probs="auto"``: its exponent, and how often samples are repeated."""

import numpy as np
import pytest

from lightning_fair.control.target import MovingTarget
from lightning_fair.control.target_values import AutoTarget, auto_exponent, expected_repeats, resolve_target


def test_auto_is_a_power_of_the_prior():
    np.testing.assert_allclose(
        resolve_target(AutoTarget(0.25), 3, [64, 16, 4]), np.array([2, 2**0.5, 1]) / (3 + 2**0.5)
    )
    for exponent, name in ((0.5, "sqrt"), (1.0, "prior")):
        same = resolve_target(AutoTarget(exponent), 3, [64, 0, 4])
        np.testing.assert_array_equal(same, resolve_target(name, 3, [64, 0, 4]))
    np.testing.assert_array_equal(resolve_target(AutoTarget(0.0), 3, [64, 0, 4]), [0.5, 0.0, 0.5])


@pytest.mark.parametrize("name", ["auto", "deferred"])
def test_names_that_need_the_training_are_refused(name):
    with pytest.raises(ValueError, match=rf"or a mapping, got '{name}'\. FairSampling\(target_probs='"):
        resolve_target(name, 3, [1, 1, 1])
    with pytest.raises(ValueError, match=r"got 'balanced'\.$"):
        resolve_target("balanced", 3)


def repeats_at(exponent, counts, num_samples):
    """Expected repeats of an item of the rarest class, slowly."""
    shares = [n**exponent for n in counts if n]
    rarest = min(n for n in counts if n)
    return num_samples * rarest**exponent / sum(shares) / rarest


@pytest.mark.parametrize(
    "counts",
    [[900, 100], [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], [7, 0, 3, 100], [10, 10, 11], [3], [10**7, 1]],
    ids=str,
)
@pytest.mark.parametrize("passes", [0.5, 3, 12, 63.9, 400])
@pytest.mark.parametrize("max_repeats", [1, 17.5, 64])
def test_auto_is_the_smallest_exponent_with_few_repeats(counts, passes, max_repeats):
    """Compared with every exponent of a grid; where even the prior repeats the items more often, it is 1."""
    num_samples = round(passes * sum(counts))
    exponent = auto_exponent(counts, num_samples, max_repeats)
    grid = np.linspace(0.0, 1.0, 1001)
    allowed = [t for t in grid if repeats_at(t, counts, num_samples) <= max_repeats]
    assert grid[0] <= exponent <= grid[-1]
    if not allowed:
        assert exponent == 1.0
    elif allowed[0] == 0.0:
        assert exponent == 0.0
    else:
        assert allowed[0] - 0.001 <= exponent <= allowed[0]
        assert repeats_at(exponent, counts, num_samples) == pytest.approx(max_repeats, rel=1e-9)
    mix = resolve_target(AutoTarget(exponent), len(counts), counts)
    repeats = expected_repeats(mix, counts, num_samples)
    np.testing.assert_array_equal(repeats == 0, np.array(counts) == 0)
    assert repeats.max() == pytest.approx(repeats_at(exponent, counts, num_samples), rel=1e-9)


def test_auto_of_published_trial():
    """CIFAR-10-LT, ratio 100, 12 epochs: the sampler repeats the rarest items 298 times, sqrt 73, the prior 12."""
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    num_samples = 12 * sum(counts)
    repeats = [expected_repeats(resolve_target(q, 10, counts), counts, num_samples)[-1] for q in ("uniform", "sqrt")]
    assert np.round(repeats).tolist() == [298, 73]
    assert 0.5 < auto_exponent(counts, num_samples, 64) < 0.6
    assert auto_exponent(counts, 40 * sum(counts), 64) > 0.8


def test_auto_takes_over_the_state_of_a_shorter_training():
    """Also the exponent; a state of another kind of target is compared as ever."""
    target = MovingTarget(AutoTarget(0.75), 2, [90, 10], 10.0, 0.0)
    target.load_state_dict(MovingTarget(AutoTarget(0.5), 2, [90, 10], 10.0, 0.0).state_dict())
    assert target.exponent == 0.5
    np.testing.assert_allclose(target.q, [0.75, 0.25])
    target.reset()
    np.testing.assert_allclose(target.q, [0.75, 0.25])
    for mine, theirs in ((AutoTarget(0.5), [0.9, 0.1]), ([0.9, 0.1], AutoTarget(0.5))):
        with pytest.raises(ValueError, match="The state steers to"):
            MovingTarget(mine, 2, [90, 10], 10.0, 0.0).load_state_dict(
                MovingTarget(theirs, 2, [90, 10], 10.0, 0.0).state_dict()
            )
    same = MovingTarget(AutoTarget(1.0), 2, [90, 10], 10.0, 0.0).state_dict()
    MovingTarget("prior", 2, [90, 10], 10.0, 0.0).load_state_dict(same)
