import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.common.class_mix import apply_floor, check_mix, total_variation
from lightning_fair.control.target import resolve_target


@st.composite
def mixes(draw, most=40):
    """Class mixes of every kind: with zeros, with tiny shares, and with one class only."""
    shares = draw(
        st.lists(
            st.one_of(st.just(0.0), st.floats(1e-9, 1e-3), st.floats(0.01, 1.0)), min_size=1, max_size=most
        ).filter(lambda values: sum(values) > 0)
    )
    return np.array(shares) / sum(shares)


# -- floor and distance --------------------------------------------------------------------------------


@given(mix=mixes(), share=st.floats(0.0, 0.999))
def test_floor_keeps_every_class_reachable(mix, share):
    active = mix > 0
    min_prob = share / mix.size
    p = apply_floor(3.0 * mix, min_prob * active)
    assert p.sum() == pytest.approx(1.0)
    assert (p[active] >= min_prob * (1.0 - 1e-12)).all()
    assert (p[~active] == 0).all()
    assert p.tolist() == pytest.approx(reference.floored(mix.tolist(), min_prob))


@given(mix=mixes(), share=st.floats(0.0, 0.9))
def test_floor_keeps_the_order_of_the_classes(mix, share):
    p = apply_floor(mix.copy(), share / mix.size * (mix > 0))
    order = np.argsort(mix, kind="stable")
    assert (np.diff(p[order]) >= -1e-15).all()


def test_distance_is_total_variation():
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert total_variation([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]) == 0.0
    assert total_variation([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) == pytest.approx(0.3)


# -- targets -------------------------------------------------------------------------------------------


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
        (torch.tensor([0.2, 0.3, 0.5]), [0.2, 0.3, 0.5]),
        (torch.tensor([0.25, 0.25, 0.5], dtype=torch.bfloat16), [0.25, 0.25, 0.5]),
    ],
)
def test_target_is_the_class_mix_it_describes(target, expected):
    mix = resolve_target(target, 3, class_counts=[64, 16, 4])
    assert mix.dtype == np.float64
    assert mix.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(mix, expected, atol=1e-7)


def test_rounding_of_a_hand_written_target_is_put_right():
    assert check_mix([0.333, 0.333, 0.333], 3).sum() == pytest.approx(1.0, abs=1e-12)


def test_target_is_a_copy():
    mine = np.array([0.5, 0.5])
    mix = check_mix(mine, 2)
    mine[0] = 9.0
    assert mix.tolist() == [0.5, 0.5]


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
        (["a", "b", "c"], r"must be numbers"),
        ([[0.5], [0.2, 0.3], 0.0], r"must be numbers"),
        ("balanced", r"must be 'uniform', 'prior', 'sqrt', a vector or a mapping, got 'balanced'"),
        ({3: 0.5}, r"names class 3; classes are the integers 0 to 2"),
        ({-1: 0.5}, r"names class -1"),
        ({"cat": 0.5}, r"names class 'cat'"),
        ({0: 0.8, 1: 0.4}, r"the named classes already sum to 1\.2"),
        ({0: 0.5, 1: 0.2, 2: 0.2}, r"must sum to one, got a sum of 0\.9"),
        ({0: -0.5}, r"must not be negative, got -0\.5 for class 0"),
        ({0: float("nan")}, r"must be finite, got nan for class 0"),
    ],
)
def test_bad_target_is_refused_with_its_rule(target, message):
    with pytest.raises(ValueError, match=message):
        resolve_target(target, 3)


@pytest.mark.parametrize("name", ["prior", "sqrt"])
def test_target_named_after_the_data_asks_for_the_counts(name):
    with pytest.raises(ValueError, match=r"is computed from the data: pass class_counts=np\.bincount"):
        resolve_target(name, 2)
    with pytest.raises(ValueError, match=rf"the {name} of class_counts must have one entry per class"):
        resolve_target(name, 2, class_counts=[1, 2, 3])
    with pytest.raises(ValueError, match=rf"the {name} of class_counts must sum to one"):
        resolve_target(name, 2, class_counts=[0, 0])


def test_numpy_integers_name_classes_in_a_mapping():
    np.testing.assert_allclose(resolve_target({np.int64(0): 0.5}, 3), [0.5, 0.25, 0.25])
