import numpy as np
import pytest
import torch

from lightning_fair.common.arrays import (
    to_arrays,
    to_numpy,
    to_tensors,
)


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
