import numpy as np
import pytest
import reference
import torch
from lightning_helpers import warnings_about  # noqa: F401  (and its one thread)

from lightning_fair.integration.step_weights import StepWeights, copy_to_host

WEIGHTS = [0.5, 1.0, 4.0]
LABELS = [0, 2, 1, 2, 0]
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0]


def started(labels=LABELS, **settings):
    step = StepWeights(3, torch.device("cpu"), **settings)
    step.start(torch.tensor(WEIGHTS), torch.tensor(labels))
    return step


def slow_mean(labels, losses, normalize=False):
    weights = reference.importance_weights(labels, WEIGHTS, [1.0, 1.0, 1.0], normalize=normalize)
    return sum(w * loss for w, loss in zip(weights, losses, strict=True)) / len(losses)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("labels", [None, [1, 1, 0, 2, 2]])
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8])
def test_mean_matches_slow_reference(normalize, labels, kind):
    """The mean matches the slow reference."""
    step = started(normalize=normalize)
    own = None if labels is None else torch.tensor(labels, dtype=kind)
    mean = step.mean(torch.tensor(LOSSES), own)
    assert mean.item() == pytest.approx(slow_mean(labels or LABELS, LOSSES, normalize))


def test_gradient_has_weights_only():
    """The gradient flows through the weights and not through the sums."""
    losses = torch.tensor(LOSSES, requires_grad=True)
    step = started()
    step.mean(losses).backward()
    assert losses.grad.tolist() == pytest.approx([WEIGHTS[y] / 5 for y in LABELS])
    assert not step.finish().requires_grad


def test_sums_per_class():
    """The sums are per class."""
    step = started()
    step.mean(torch.tensor(LOSSES))
    samples, finite, sums = step.finish()[:, :-1]
    assert samples.tolist() == finite.tolist() == [2, 1, 2]
    assert sums.tolist() == [6.0, 3.0, 6.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_loss_is_not_summed(bad):
    """A loss that is not finite is counted and not summed."""
    step = started()
    mean = step.mean(torch.tensor([1.0, bad, 3.0, 4.0, 5.0]))
    assert not torch.isfinite(mean)  # the user's own loss is not touched
    samples, finite, sums = step.finish()[:, :-1]
    assert samples.tolist() == [2, 1, 2]
    assert finite.tolist() == [2, 1, 1]
    assert sums.tolist() == [6.0, 3.0, 4.0]


def test_new_batch_starts_empty():
    """A new batch starts with empty sums."""
    step = started()
    step.mean(torch.tensor(LOSSES))
    before = step.finish()
    step.start(torch.ones(3), torch.tensor([1]))
    assert step.finish().tolist() == torch.zeros(3, 4).tolist()
    assert step.mean(torch.tensor([7.0])).item() == 7.0
    assert step.finish()[:, :-1].tolist() == [[0, 1, 0], [0, 1, 0], [0, 7, 0]]
    assert before[0].tolist() == [2, 1, 2, 1]  # what was taken earlier has not changed


def test_calls_are_counted():
    """The sums count the calls."""
    step = started()
    assert step.finish()[0, -1] == 0
    step.mean(torch.tensor(LOSSES))
    assert step.finish()[0, -1] == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision(kind):
    """Losses of any precision are accepted, and the weights stay float32."""
    step = started()
    mean = step.mean(torch.tensor(LOSSES, dtype=kind))
    assert mean.dtype is torch.promote_types(kind, torch.float32)
    assert mean.item() == pytest.approx(slow_mean(LABELS, LOSSES))
    assert step.finish()[2, :-1].tolist() == [6.0, 3.0, 6.0]


def test_half_precision_sums_are_exact():
    """Sums of half precision losses are exact."""
    step = started(labels=[0] * 3000)
    step.mean(torch.full((3000,), 1.0, dtype=torch.bfloat16))  # bfloat16 itself cannot count beyond 256
    assert step.finish()[:, 0].tolist() == [3000.0, 3000.0, 3000.0]


@pytest.mark.parametrize(
    ("losses", "labels", "match"),
    [
        (torch.tensor(1.0), None, r"shape \(batch,\), got shape \(\)"),
        (torch.ones(5, 2), None, r'got shape \(5, 2\).*reduction="none"'),
        (torch.ones(4), None, "got 4 losses, but 5 samples were drawn.*pass the class of each"),
        (torch.ones(5), torch.zeros(4, dtype=torch.int64), r"got 5 losses, but labels of shape \(4,\)"),
        (torch.ones(5), torch.zeros(5, 1, dtype=torch.int64), r"labels of shape \(5, 1\)"),
    ],
)
def test_bad_shapes_are_refused(losses, labels, match):
    """Losses and labels of a wrong shape are refused."""
    step = started()
    with pytest.raises(ValueError, match=match):
        step.mean(losses, labels)
    assert step.finish().sum() == 0  # nothing was counted


def test_messages_about_groups():
    """Messages speak of groups if the labels are groups."""
    step = started(noun="group")
    for labels in (torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0.0, 1.0, 2.0, 0.0, 0.0])):
        with pytest.raises(ValueError, match="needs the group of each sample"):
            step.mean(torch.ones(5), labels)
    with pytest.raises(ValueError, match="pass the group of each"):
        step.mean(torch.ones(4))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("normalize", [False, True])
def test_compiled_mean_compiles_once(backend, normalize):
    """The compiled mean is right in every batch, and compiled once."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    step = started(normalize=normalize)
    compiled = torch.compile(lambda losses: step.mean(2.0 * losses), backend=counting, fullgraph=True)
    rng = np.random.default_rng(0)
    for _ in range(4):
        weights = torch.tensor(rng.random(3), dtype=torch.float32)
        labels, losses = torch.tensor(rng.integers(0, 3, 6)), torch.tensor(rng.random(6), dtype=torch.float32)
        step.start(weights, labels)
        mean = compiled(losses)
        w = weights[labels] / (weights[labels].mean() if normalize else 1.0)
        assert mean.item() == pytest.approx((w * 2.0 * losses).mean().item(), rel=1e-6)
        expected = torch.bincount(labels, weights=2.0 * losses.double(), minlength=3)
        np.testing.assert_allclose(step.finish()[2, :-1], expected, rtol=1e-5)
    assert len(graphs) == 1


def test_host_copy():
    """The copy on the host equals the value."""
    value = torch.arange(6.0).reshape(2, 3)
    assert copy_to_host(value)().tolist() == value.tolist()
    assert copy_to_host(value)().device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_copy_is_a_snapshot():
    """The copy from a GPU is the value at the time of the copy."""
    value = torch.arange(6.0, device="cuda")
    copy = copy_to_host(value)
    value.zero_()
    assert copy().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
