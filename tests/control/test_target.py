import numpy as np
import pytest
import torch

from lightning_fair.control.target import MovingTarget
from lightning_fair.control.target_values import number_target, resolve_target, target_endpoints
from lightning_fair.schedules import Linear, Shift, Step

# -- values of target_probs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [1 / 3, 1 / 3, 1 / 3]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("prior", [16 / 21, 4 / 21, 1 / 21]),
        ("sqrt", [4 / 7, 2 / 7, 1 / 7]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ({2: 0.5}, [0.25, 0.25, 0.5]),
        ({0: 0.25, 2: 0.75}, [0.25, 0.0, 0.75]),
        ({np.int64(0): 0.5}, [0.5, 0.25, 0.25]),
        (torch.tensor([0.2, 0.3, 0.5]), [0.2, 0.3, 0.5]),
        (torch.tensor([0.25, 0.25, 0.5], dtype=torch.bfloat16), [0.25, 0.25, 0.5]),
    ],
)
def test_target_is_the_mix_it_describes(target, expected):
    mix = resolve_target(target, 3, class_counts=[64, 16, 4])
    assert mix.dtype == np.float64
    assert mix.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(mix, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ([0.5, 0.5], r"one entry per class, shape \(3,\), got shape \(2,\)"),
        ([[0.5, 0.25, 0.25]], r"shape \(3,\), got shape \(1, 3\)"),
        ([0.5, float("nan"), 0.5], r"must be finite, got nan for class 1"),
        ([0.5, 0.5, float("inf")], r"must be finite, got inf for class 2"),
        ([1.2, -0.2, 0.0], r"must not be negative, got -0\.2 for class 1"),
        ([0.5, 0.5, 0.5], r"must sum to one, got a sum of 1\.5\. Divide it by its sum"),
        ([0.0, 0.0, 0.0], r"must sum to one, got a sum of 0"),
        ("balanced", r"must be 'uniform', 'prior', 'sqrt', a vector or a mapping, got 'balanced'"),
        ({3: 0.5}, r"names class 3; classes are the integers 0 to 2"),
        ({-1: 0.5}, r"names class -1"),
        ({"cat": 0.5}, r"names class 'cat'"),
        ({0: 0.8, 1: 0.4}, r"the named classes already sum to 1\.2"),
        ({0: 0.5, 1: 0.2, 2: 0.2}, r"must sum to one, got a sum of 0\.9"),
        ({0: -0.5}, r"target_probs\[0\] must lie in \[0, inf\), got -0\.5"),
        ({0: float("nan")}, r"target_probs\[0\] must lie in \[0, inf\), got nan"),
        ({0: float("inf")}, r"target_probs\[0\] must lie in \[0, inf\), got inf"),
    ],
)
def test_invalid_target_is_refused(target, message):
    with pytest.raises(ValueError, match=message):
        resolve_target(target, 3)


@pytest.mark.parametrize("name", ["prior", "sqrt"])
def test_named_target_needs_class_counts(name):
    with pytest.raises(ValueError, match=r"is computed from the data: pass class_counts=np\.bincount"):
        resolve_target(name, 2)
    with pytest.raises(ValueError, match=r"class_counts must have one entry per class"):
        resolve_target(name, 2, class_counts=[1, 2, 3])
    with pytest.raises(ValueError, match=rf"the {name} of class_counts must sum to one"):
        resolve_target(name, 2, class_counts=[0, 0])


def test_endpoints():
    assert target_endpoints("sqrt") == ("sqrt", "sqrt")
    assert target_endpoints(Shift(Linear(0.0, 1.0, 5), "prior", "sqrt")) == ("prior", "sqrt")


# -- a target that moves ---------------------------------------------------------------------------


def moving_target(start=(0.8, 0.2, 0.0), end=(0.2, 0.3, 0.5)):
    return MovingTarget(Shift(Linear(0.0, 1.0, 4), start, end), 3, None, max_weight=10.0, min_prob=0.04)


def test_target_moves_between_its_endpoints():
    target = moving_target()
    assert target.q.tolist() == [0.8, 0.2, 0.0]
    assert target.progress_at(step=2, epoch=0) == 0.5
    target.move_to(0.5)
    np.testing.assert_allclose(target.q, [0.5, 0.25, 0.25])
    np.testing.assert_allclose(target.mix_at(1.0), [0.2, 0.3, 0.5])
    assert target.wanted.all()
    assert target.smallest == 0.25
    target.reset()
    assert target.progress == 0.0


def test_quantities_follow_the_target():
    target = moving_target()
    assert target.inverse_q.tolist() == [1.25, 5.0, 0.0]
    assert target.log_rest[2] == -np.inf
    assert target.floor.tolist() == [0.08, 0.04, 0.0]
    target.move_to(1.0)
    assert target.floor.tolist() == [0.04, 0.04, 0.05]
    np.testing.assert_allclose(target.inverse_q, [5.0, 1 / 0.3, 2.0])
    np.testing.assert_allclose(target.log_rest, np.log([0.2, 0.3, 0.5]))


def test_smallest_target_on_the_way():
    """The smallest target of a class is largest within the way, where two classes cross, and least at an end."""
    least, largest = moving_target(start=(0.9, 0.1, 0.0), end=(0.1, 0.9, 0.0)).smallest_range
    assert (least, largest) == (pytest.approx(0.1), pytest.approx(0.5))


def test_fixed_target_stays():
    target = MovingTarget([0.5, 0.5], 2, None, max_weight=10.0, min_prob=0.0)
    assert target.progress_at(step=100, epoch=100) == 0.0
    assert target.mix_at(1.0).tolist() == [0.5, 0.5]


def test_skipped_classes_share_out_their_target():
    target = moving_target()
    target.skip_classes(np.array([True, False, False]))
    assert target.q.tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(target.end, [0.0, 0.375, 0.625])
    with pytest.raises(ValueError, match=r"Every class with a target lacks samples"):
        target.skip_classes(np.array([False, True, False]))
    assert target.q.tolist() == [0.0, 1.0, 0.0]


def test_state_of_another_target_is_refused():
    target, other = moving_target(), moving_target(end=(0.5, 0.5, 0.0))
    target.move_to(0.5)
    same = moving_target()
    same.load_state_dict(target.state_dict())
    assert same.progress == 0.5
    with pytest.raises(
        ValueError, match=r"steers to \[0\.2 0\.3 0\.5\] from \[0\.8 .*this controller to \[0\.5 0\.5 0\. *\] from"
    ):
        other.load_state_dict(target.state_dict())
    assert other.progress == 0.0


@pytest.mark.parametrize(
    ("target", "numbers", "expected"),
    [
        ({"dog": 0.8}, {"cat": 0, "dog": 1}, {1: 0.8}),
        ({0: 0.8}, {"cat": 0, "dog": 1}, {0: 0.8}),
        ({"dog": 0.8, 0: 0.1}, {"cat": 0, "dog": 1}, {1: 0.8, 0: 0.1}),
        ({30: 0.8}, {10: 0, 30: 1, "10": 0, "30": 1}, {1: 0.8}),
        ({1: 0.8}, {5: 0, 1: 1}, {1: 0.8}),
        ({True: 0.8}, {False: 0, True: 1}, {1: 0.8}),
        ({1: 0.8}, {}, {1: 0.8}),
        ([0.8, 0.2], {"cat": 0, "dog": 1}, [0.8, 0.2]),
        ("sqrt", {"sqrt": 0}, "sqrt"),
        (None, {}, None),
    ],
)
def test_names_are_numbered(target, numbers, expected):
    """Names and label values become class numbers. Other targets, and class numbers, stay."""
    assert number_target(target, numbers) == expected
    shift = Shift(Step(0.0, 1.0, at=5), start=target, end="prior")
    assert number_target(shift, numbers) == Shift(shift.progress, start=expected, end="prior")


@pytest.mark.parametrize(
    ("target", "numbers", "message"),
    [
        ({"fox": 0.8}, {"cat": 0, "dog": 1}, r"names class 'fox'; the classes are 'cat', 'dog'\."),
        ({"fox": 0.8}, {}, r"names class 'fox'; the classes are numbers without names"),
        ({0: 0.8}, {10: 0, 30: 1, "10": 0, "30": 1}, r"names class 0; the classes are '10', '30'"),
        ({"dog": 0.8, 1: 0.1}, {"cat": 0, "dog": 1}, r"names class 1 twice, the second time as 1"),
    ],
)
def test_unknown_names_are_refused(target, numbers, message):
    with pytest.raises(ValueError, match=message):
        number_target(target, numbers)
    with pytest.raises(ValueError, match=message):
        number_target(Shift(Step(0.0, 1.0, at=5), end=target), numbers)
