"""Draws, states and class mixes for tests of the controller and its law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_fair import FeedbackController
from lightning_fair.control.draw import Draw


def class_mixes(min_size: int = 1, max_size: int = 6, smallest: float = 0.02) -> st.SearchStrategy[NDArray[np.float64]]:
    """Positive class mixes."""
    shares = st.lists(st.floats(smallest, 1.0), min_size=min_size, max_size=max_size)
    return shares.map(lambda values: np.array(values) / sum(values))


def make_draw(controller: FeedbackController, counts: Sequence[int] | NDArray[Any]) -> Draw:
    """Record a draw with these class counts, as a batch sampler does."""
    draw = replace(controller.plan_draw(), counts=np.array(counts))
    controller.record_draw(draw)
    return draw


def labels_from_counts(counts: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Return the labels of a batch with these class counts."""
    return np.repeat(np.arange(len(counts)), counts)


def same(a: Any, b: Any) -> bool:
    """Return whether two states hold the same numbers, bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_is_finite(controller: FeedbackController) -> bool:
    """Return whether the next class mix is one, and every number of the state is finite.

    NaN is allowed for the loss and for the score of a class that has had none.
    """
    state = controller.state_dict()
    state |= state.pop("objective")
    seen = [values[~np.isnan(values)] for values in (state.pop(name).numpy() for name in ("ema_loss", "scores"))]
    arrays = [*seen, *(value.numpy() for value in state.values() if isinstance(value, torch.Tensor))]
    mixes = controller.get_probs(), controller.get_reference()
    return all(np.isfinite(values).all() for values in (*mixes, *arrays)) and all(
        math.isclose(mix.sum(), 1.0) for mix in mixes
    )


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["draw"] * 6 + ["report"] * 5 + ["withdraw", "abandon", "resume"]), st.integers(0, 3)),
    max_size=60,
)
"""What can happen to the draws of a sampler: an event, and the place of a draw among those that it can be of."""
