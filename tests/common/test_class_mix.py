import numpy as np
import pytest
import torch

from lightning_fair.common.class_mix import check_mix, total_variation


def test_sum_off_by_rounding_is_scaled():
    assert check_mix([0.333, 0.333, 0.333], 3).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_accepted(dtype):
    mix = check_mix(torch.tensor([0.25, 0.25, 0.5], dtype=dtype), 3)
    assert mix.dtype == np.float64
    assert mix.tolist() == [0.25, 0.25, 0.5]


def test_mix_is_a_copy():
    values = np.array([0.5, 0.5])
    mix = check_mix(values, 2)
    values[0] = 9.0
    assert mix.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], r"reference must have one entry per class, shape \(3,\), got shape \(2,\)"),
        ([0.5, 0.5, float("inf")], r"reference must be finite, got inf for class 2"),
        ([1.2, -0.2, 0.0], r"reference must not be negative, got -0\.2 for class 1"),
        ([0.5, 0.5, 0.5], r"reference must sum to one, got a sum of 1\.5\. Divide it by its sum"),
    ],
)
def test_invalid_mix_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_mix(values, 3, "reference")


def test_total_variation():
    assert total_variation([1.0, 0.0], [0.0, 1.0]) == 1.0
    assert total_variation([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]) == 0.0
    assert total_variation([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]) == pytest.approx(0.3)
