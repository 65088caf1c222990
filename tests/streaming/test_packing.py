"""Samples as bytes that load without running any code."""

import pickle
import zlib
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
    with pytest.raises(TypeError, match=r"A sample must be dense tensors.*got a \w+.*Convert it\."):
        pack([value], "A sample", "Convert it.")


def test_bytes_that_name_a_function_are_refused():
    head = pickle.dumps(print)
    with pytest.raises(ValueError, match=r"damaged: they name \w+\.print"):
        unpack((12).to_bytes(8, "little") + zlib.crc32(head).to_bytes(4, "little") + head)
    packed = pack([torch.zeros(4)], "")
    with pytest.raises(ValueError, match="damaged: their checksum is another one"):
        unpack(packed[:20] + bytes([packed[20] ^ 1]) + packed[21:])


def test_shared_part_is_packed_once():
    table = torch.arange(1000.0)
    packed = pack([(table, i) for i in range(50)], "")
    assert len(packed) < 8000
    first, *_, last = unpack(packed)
    assert first[0] is last[0]
    assert first[0].equal(table)


def test_less_common_parts_come_back():
    z = torch.tensor([1 + 2j])
    parts = [
        np.str_(""),
        np.str_("ab"),
        np.bytes_(b""),
        z.conj(),
        z.conj().imag,
        np.zeros(0),
        np.datetime64("2026-11-30"),
    ]
    for part, result in zip(parts, unpack(pack(parts, "")), strict=True):
        assert type(result) is type(part)
        assert result.dtype == part.dtype
        assert result.tolist() == part.tolist()


def test_masked_array_is_refused():
    with pytest.raises(TypeError, match=r"got a numpy\.ma"):
        pack(np.ma.masked_array([1, 2], [0, 1]), "A sample")
