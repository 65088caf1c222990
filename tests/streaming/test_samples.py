"""Labels, memory and weights of the samples of a stream."""

from types import SimpleNamespace

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
        ((0, 0.5), ValueError, r"whole numbers or names, got 0\.5 in the stream\. To balance intervals"),
        ((0, None), ValueError, r"has none \(None or NaN\)\. Leave such samples out of the source"),
        ((0, torch.tensor(torch.nan)), ValueError, r"has none \(None or NaN\)"),
        ((0, "cat"), TypeError, r"got 'cat' in a stream that names no classes\. Pass FairStream\(class_names="),
        ((0, torch.tensor([1, 2])), ValueError, r"got tensor\(\[1, 2\]\) .* set FairStream\(several_labels=True\)"),
        ((0, [1, 0, 1, 0]), ValueError, r"got \[1, 0, 1, 0\] .* set FairStream\(several_labels=True\)"),
        (
            (0, ["cat", "dog"]),
            ValueError,
            r"set FairStream\(several_labels=True\)\. If these .* To choose one label, pass",
        ),
        ("text", TypeError, r"got a str without it\. Pass FairStream\(label_fn"),
        ({"cls": 1}, TypeError, r"got a dict without it \(keys 'cls'\)\. Pass FairStream\(label_fn"),
    ],
)
def test_invalid_labels_raise(sample, error, match):
    with pytest.raises(error, match=match):
        list(FairStream([sample], FeedbackController(4), batch_size=8))


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        np.uint8(2),
        np.float32(2),
        torch.tensor(2),
        torch.tensor([2.0]),
        np.array([2]),
        (0, 0, 1),
        [0.0, 0.0, 1.0],
        torch.tensor([0, 0, 1, 0]),
        np.array([False, False, True]),
        "cow",
        b"cow",
        np.str_("cow"),
        np.array(["cow"]),
    ],
    ids=repr,
)
def test_labels_in_any_form(value):
    """The same forms as in a data set: numbers of any type, one-hot rows, and names of classes."""
    stream = FairStream([(0, value)] * 8, FeedbackController(4), batch_size=4, class_names=["ant", "bee", "cow", "doe"])
    if isinstance(value, tuple):  # beside names, a tuple is a name
        stream.class_names = None
    assert [draw.labels.tolist() for draw, _ in stream.batches()] == [[2] * 4] * 2


def test_bools_and_tuples_are_names():
    pairs = [(0, ("cat", 0)), (0, ("dog", 1))] * 4
    stream = FairStream(pairs, FeedbackController(2), batch_size=8, class_names=[("dog", 1), ("cat", 0)])
    assert sorted(next(stream.batches())[0].labels.tolist()) == [0] * 4 + [1] * 4
    flags = [(0, torch.tensor(True)), (0, True), (0, np.bool_(False)), (0, False)]
    (draw, _) = next(FairStream(flags, FeedbackController(2), batch_size=4).batches())
    assert draw.counts.tolist() == [2, 2]


def test_unknown_name_raises():
    stream = FairStream([(0, "cat"), (0, "emu")], FeedbackController(2), batch_size=4, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"got 'emu' in the stream; the classes are 'cat', 'dog'\. Name it in"):
        list(stream)


def test_names_of_the_source():
    """The names are those of the argument, else the source's `classes`, else those in its `features`."""

    class Source(list):
        pass

    source = Source([{"label": "b"}, {"label": "a"}])
    assert FairStream(source, batch_size=2).classes is None
    source.features = {"label": SimpleNamespace(names=["a", "b"])}
    assert FairStream(source, batch_size=2).classes == ["a", "b"]
    assert FairStream(source, batch_size=2, label_fn=len).classes is None  # of which feature is not known
    source.classes = ["b", "a"]
    draw, samples = next(FairStream(source, FeedbackController(2), batch_size=2).batches())
    assert ["ba"[y] for y in draw.labels] == [sample["label"] for sample in samples]
    assert FairStream(source, batch_size=2, class_names=["x", "y"]).classes == ["x", "y"]
    source.classes = ["a", "a", "b"]
    with pytest.raises(ValueError, match="got 'a' in the stream; the classes are 'b'"):  # either of two
        list(FairStream(source, FeedbackController(3), batch_size=2))


def test_class_names_name_every_class():
    with pytest.raises(ValueError, match="class_names must name every class: got 2 names for 3 classes"):
        FairStream([], FeedbackController(3), batch_size=2, class_names=["a", "b"])


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
