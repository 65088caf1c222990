"""Samples as bytes that load without running any code."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair.streaming.packing import as_bytes, as_tensor, pack, unpack

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda part: st.lists(part) | st.tuples(part, part) | st.dictionaries(st.text(), part),
    max_leaves=8,
)


@given(PLAIN)
def test_plain_values_come_back(value):
    assert unpack(as_bytes(as_tensor(pack(value, "")))) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_come_back(dtype, shape):
    """Of a slice only its own data are packed."""
    tensor = (torch.arange(12).reshape(4, 3) % 2).to(dtype)[1:3] if len(shape) == 2 else torch.ones(shape, dtype=dtype)
    result = unpack(pack({"x": tensor}, ""))["x"]
    assert result.dtype is dtype
    assert torch.equal(result, tensor)
    assert result.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_arrays_come_back():
    values = [np.arange(6, dtype=">i2").reshape(2, 3)[:, ::2], np.float32(1.5), np.str_("a"), np.zeros((0, 2))]
    for value, result in zip(values, unpack(pack(values, "")), strict=True):
        assert type(result) is type(value)
        assert result.dtype == value.dtype
        np.testing.assert_array_equal(result, value)
    unpack(pack(np.zeros(3), ""))[0] = 1.0  # writable
    assert unpack(pack(OrderedDict(b=1, a=2), "")) == OrderedDict(b=1, a=2)


@pytest.mark.parametrize(
    "value",
    [object(), print, torch.float32, torch.Size([1]), np.array([None]), 1j],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match=r"A sample must be tensors.*got a \w+.*Convert it\."):
        pack([value], "A sample", "Convert it.")


def test_bytes_that_name_a_function_are_refused():
    head = pickle.dumps(print)
    with pytest.raises(ValueError, match=r"damaged: they name \w+\.print"):
        unpack((8).to_bytes(8, "little") + head)
    with pytest.raises(ValueError, match="damaged"):
        unpack(pack([torch.zeros(4)], "")[:-3])
