import math

import numpy as np
import pytest
import torch

from lightning_fair.common.arrays import (
    check_at_least_zero,
    check_integer,
    to_arrays,
    to_numpy,
    to_tensors,
)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_integers_are_accepted(value):
    checked = check_integer("batch_size", value, 1)
    assert checked == 3
    assert type(checked) is int


@pytest.mark.parametrize("value", [0, -1, True, 2.0, np.float64(2.0), math.nan, "2", None])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got "):
        check_integer("batch_size", value, 1)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_negative_or_infinite_number_is_refused(value):
    assert check_at_least_zero("alpha", 0) == 0.0
    with pytest.raises(ValueError, match=f"alpha must be finite and at least 0, got {value}"):
        check_at_least_zero("alpha", value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensor_of_any_dtype_becomes_array(dtype):
    assert to_numpy(torch.tensor([1, 2], dtype=dtype)).tolist() == [1, 2]
    assert to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1.0, 1.0]


def test_other_values_are_unchanged():
    values = [1, 2]
    assert to_numpy(values) is values


def test_state_of_arrays_survives_the_round_trip():
    state = {"mix": np.array([0.25, 0.75]), "count": 3, "missing": None}
    tensors = to_tensors(state)
    assert isinstance(tensors["mix"], torch.Tensor)
    state["mix"][0] = 9.0  # the tensor is a copy
    arrays = to_arrays(tensors)
    assert arrays["mix"].tolist() == [0.25, 0.75]
    assert (arrays["count"], arrays["missing"]) == (3, None)
    assert not np.shares_memory(arrays["mix"], tensors["mix"].numpy())
