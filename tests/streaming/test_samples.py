"""Labels, memory and weights of the samples of a stream."""

import numpy as np
import pytest
import torch

from lightning_fair import FairStream, FeedbackController


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_slices_are_copied(kind):
    """A slice of a larger block does not own its memory, and its copy does."""
    images = torch.zeros(400, 28, 28) if kind is torch.Tensor else np.zeros((400, 28, 28))
    fair = FairStream([(images[i], i % 4) for i in range(400)], FeedbackController(4), batch_size=8, buffer_size=50)
    assert all((x._base if kind is torch.Tensor else x.base) is None for x, _ in fair)


@pytest.mark.parametrize(
    ("sample", "error", "match"),
    [
        ((0, 4), ValueError, r"labels must lie in \[0, 4\), got 4 in the stream"),
        ((0, -1), ValueError, r"got -1 in the stream\. A negative number often marks a sample without a class: leave"),
        ((0, 2**70), ValueError, "got 1180591620717411303424"),
        ((0, 1.0), TypeError, "is one integer; got 1.0 in a tuple"),
        ((0, torch.tensor([1, 2])), TypeError, "is one integer; got tensor"),
        ("text", TypeError, "got None in a str"),
    ],
)
def test_invalid_labels_raise(sample, error, match):
    with pytest.raises(error, match=match):
        list(FairStream([sample], FeedbackController(4), batch_size=8))


def test_weight_needs_tuple_or_mapping():
    stream = FairStream(
        torch.tensor([[1.0, 0.0], [2.0, 1.0]] * 8),
        FeedbackController(2),
        batch_size=4,
        label_fn=lambda s: int(s[1]),
        return_weights=True,
    )
    with pytest.raises(TypeError, match="to a tuple, a list or a mapping, but a sample is a Tensor"):
        next(iter(stream))
