"""Weights, offsets and sums of one step, against slow references."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from lightning_helpers import warnings_about  # noqa: F401  (and its one thread)
from torch.nn import functional as F

from lightning_fair import FeedbackController
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_correction import StepCorrection, copy_to_host

WEIGHTS = [0.5, 1.0, 4.0]
LABELS = [0, 2, 1, 2, 0]
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0]


def draw_of(probs, reference_mix, weight_reference=None):
    """Return the part of a draw's record that a step reads."""
    probs, reference_mix = np.array(probs, dtype=float), np.array(reference_mix, dtype=float)
    weight_reference = reference_mix if weight_reference is None else np.array(weight_reference)
    return SimpleNamespace(probs=probs, reference=reference_mix, weight_reference=weight_reference)


def started(labels=LABELS, noun="class", draw=None, K=3, **settings):
    of_law = {name: settings[name] for name in ("lambda2", "max_weight", "feedback_to") if name in settings}
    feedback = "train" if settings.get("feedback", "train") == "train" else "validation"
    controller = FeedbackController(K, feedback=feedback, **of_law)
    step = StepCorrection(controller, torch.device("cpu"), FairSettings(**settings), noun=noun)
    step.start(draw or draw_of(np.ones(K), WEIGHTS), torch.tensor(labels))
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
    step.start(draw_of(np.ones(3), np.ones(3)), torch.tensor([1]))
    assert step.finish().tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4]  # no losses: the labels of the batch
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
    assert step.finish()[1:].sum() == 0  # nothing was summed


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
        step.start(draw_of(np.ones(3), weights.numpy()), labels)
        mean = compiled(losses)
        w = weights[labels] / (weights[labels].mean() if normalize else 1.0)
        assert mean.item() == pytest.approx((w * 2.0 * losses).mean().item(), rel=1e-6)
        expected = torch.bincount(labels, weights=2.0 * losses.double(), minlength=3)
        np.testing.assert_allclose(step.finish()[2, :-1], expected, rtol=1e-5)
    assert len(graphs) == 1


# -- logits --------------------------------------------------------------------------------------------------------

PROBS, REFERENCE = [0.7, 0.2, 0.1], [0.2, 0.3, 0.5]
SHAPES = {3: [(5, 3), (5, 4, 3), (5, 2, 2, 3), (3,)], 2: [(5, 2), (5, 4, 2), (5,), (5, 1)], 1: [(5, 1)]}


def adjusting(K=3, probs=None, reference_mix=None, labels=None, **settings):
    probs, reference_mix = probs or PROBS[:K], reference_mix or REFERENCE[:K]
    labels = [y % K for y in LABELS] if labels is None else labels
    return started(labels, draw=draw_of(probs, reference_mix), K=K, correction="logits", **settings)


def slow_adjusted(logits, probs, reference_mix):
    """Add ``log(p / reference)`` to every logit; to a single one, that of class 1 minus that of class 0."""
    offsets = [np.log(max(p, 1e-12) / ref) if ref else 0.0 for p, ref in zip(probs, reference_mix, strict=True)]
    if len(probs) == 2 and logits.shape[-1:] != (2,):
        return logits.double() + (offsets[1] - offsets[0])
    return torch.stack([logits[..., c].double() + offset for c, offset in enumerate(offsets)], -1)


def random_logits(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("K", "shape"), [(K, shape) for K, shapes in SHAPES.items() for shape in shapes], ids=str)
@pytest.mark.parametrize("mixes", ["positive", "no draw", "no reference"])
def test_adjusted_logits_match_slow_reference(K, shape, mixes):
    """Every shape that is allowed matches the slow reference."""
    probs, reference_mix = PROBS[:K], REFERENCE[:K]
    probs = [0.0, *probs[1:]] if mixes == "no draw" else probs
    reference_mix = [0.0, *reference_mix[1:]] if mixes == "no reference" else reference_mix
    logits = random_logits(shape)
    adjusted = adjusting(K, probs, reference_mix).adjust(logits)
    assert adjusted.shape == logits.shape
    np.testing.assert_allclose(adjusted, slow_adjusted(logits, probs, reference_mix), rtol=1e-5, atol=1e-6)


def test_single_logit_is_log_odds():
    """One logit moves by ``log(p1 * reference0 / (p0 * reference1))``."""
    step = adjusting(2, [0.9, 0.1], [0.5, 0.5])
    assert step.adjust(torch.zeros(5)).tolist() == pytest.approx([np.log(0.1 / 0.9)] * 5)


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_adjusted_precision(K, kind):
    """The sum has float32 or more, also of half precision and of a single logit."""
    logits = random_logits((5,) if K == 2 else (5, 3)).to(kind)
    adjusted = adjusting(K).adjust(logits)
    assert adjusted.dtype is torch.promote_types(kind, torch.float32)
    np.testing.assert_allclose(adjusted, slow_adjusted(logits, PROBS[:K], REFERENCE[:K]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("K", "shape"), [(3, ()), (3, (5,)), (3, (5, 1)), (3, (5, 3, 7)), (3, (5, 4)), (2, (5, 3)), (2, (5, 4, 1)), (2, ())]
)
def test_wrong_logits_are_refused(K, shape):
    """Logits of another shape are an error with the rule, the shape and a remedy."""
    with pytest.raises(
        ValueError, match=rf"the {K} classes that FairSampling balances, shape \(\.\.\., {K}\)"
    ) as error:
        adjusting(K).adjust(torch.zeros(shape))
    assert f"got shape {shape}" in str(error.value)
    assert ("(batch,) or (batch, 1)" in str(error.value)) == (K == 2)
    assert "correction='weights'" in str(error.value)
    if shape == (5, 3, 7):
        adjusting(K).adjust(torch.zeros(shape).movedim(1, -1))  # the remedy


def test_two_logits_of_one_dimension():
    """Of two classes, logits of shape (2,) are those of two samples if the batch has two, else an error."""
    z = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match=r"\(2,\) are two logits of one sample .* has 5 samples") as error:
        adjusting(2).adjust(z)
    for remedy in ("logits[None]", "logits[:, None]"):
        assert remedy in str(error.value)
        rows = eval(remedy, {"logits": z})
        np.testing.assert_allclose(
            adjusting(2).adjust(rows), slow_adjusted(rows, PROBS[:2], REFERENCE[:2]), rtol=1e-5, atol=1e-6
        )
    single, pair = (
        slow_adjusted(z[:, None], PROBS[:2], REFERENCE[:2])[:, 0],
        slow_adjusted(z[None], PROBS[:2], REFERENCE[:2]),
    )
    two, labels = adjusting(2, labels=[0, 1]), torch.tensor([0, 1])
    np.testing.assert_allclose(two.adjust(z), single, rtol=1e-5)
    np.testing.assert_allclose(adjusting(2).adjust(z, labels), single, rtol=1e-5)
    np.testing.assert_allclose(two.adjust(z, outputs=2), pair[0], rtol=1e-5)
    np.testing.assert_allclose(adjusting(2).adjust(z, outputs=1), single, rtol=1e-5)
    with pytest.raises(ValueError, match="got 1 logits, but 5 samples"):
        adjusting(2, lambda2=0.3).adjust(z, outputs=2)


def test_transforms_of_torch_func():
    """Logits are adjusted within a transform of ``torch.func``, and counted; losses cannot be fed back there."""
    z, y = random_logits((5, 3)), torch.tensor(LABELS)

    def loss(step, z):
        return step.mean(F.cross_entropy(step.adjust(z), y, reduction="none"))

    step, plain = adjusting(), random_logits((5, 3)).requires_grad_()
    loss(adjusting(), plain).backward()
    torch.testing.assert_close(torch.func.grad(lambda z: loss(step, z))(z), plain.grad)
    assert step.finish()[:, -1].tolist() == [0, 1, 0]
    for other, caller in ((adjusting(lambda2=0.3), "adjusted_logits"), (started(), "weighted_loss")):
        call = (lambda z, other=other: loss(other, z)) if other.adjusts_logits else (lambda z: started().mean(z[:, 0]))
        with pytest.raises(RuntimeError, match=f"{caller} was called within a transform of torch.func") as error:
            torch.func.grad(call)(z)
        assert "FairSampling(correction='logits', lambda2=0.0)" in str(error.value)


def test_weights_of_one_beside_logits():
    """If the logits are adjusted, or nothing is corrected, the weights are one."""
    losses = torch.tensor(LOSSES)
    for correction in ("logits", "none"):
        step = started(draw=draw_of(PROBS, REFERENCE), correction=correction)
        assert step.mean(losses) == losses.mean()
        assert step.finish()[2, :-1].tolist() == [6.0, 3.0, 6.0]


def slow_costs(logits, labels, K):
    """Return the mean cross entropy of each row."""
    if K == 2 and (logits.ndim == 1 or logits.shape[1:] == (1,)):
        logits = torch.stack((torch.zeros(len(logits)), logits.reshape(-1)), 1)
    return [
        F.cross_entropy(z.reshape(-1, z.shape[-1]), torch.tensor([y]).expand(z.numel() // z.shape[-1])).item()
        for z, y in zip(logits.float(), labels, strict=True)
    ]


@pytest.mark.parametrize("feedback_to", ["draw", "objective"])
@pytest.mark.parametrize(
    ("K", "shape"),
    [(K, shape) for K, shapes in SHAPES.items() for shape in shapes if len(shape) > 1 or K == 2],
    ids=str,
)
def test_cross_entropy_that_is_fed_back(K, shape, feedback_to):
    """The draw learns the cross entropy of the raw logits, the objective that of the adjusted ones; no sample twice."""
    step = adjusting(K, lambda2=0.3, feedback_to=feedback_to)
    logits, labels = random_logits(shape).requires_grad_(), [y % K for y in LABELS]
    adjusted = step.adjust(logits)
    step.mean(torch.tensor(LOSSES, requires_grad=True))
    costs = slow_costs(logits.detach() if feedback_to == "draw" else adjusted.detach(), labels, K)
    sums = step.finish()
    assert not sums.requires_grad
    assert sums[0, :-1].tolist() == sums[1, :-1].tolist() == np.bincount(labels, minlength=K).tolist()
    np.testing.assert_allclose(sums[2, :-1], np.bincount(labels, costs, minlength=K), rtol=1e-4, atol=1e-6)


def test_feedback_from_validation_sums_losses_of_the_loss():
    """If training losses are not fed back, those of ``weighted_loss`` are summed, for the log."""
    for settings in ({"lambda2": 0.0}, {"lambda2": 0.3, "feedback": "val/recall"}):
        step = adjusting(**settings)
        step.adjust(torch.zeros(5, 3))
        step.mean(torch.tensor(LOSSES))
        assert step.finish().tolist() == [[2, 1, 2, 1], [2, 1, 2, 1], [6, 3, 6, 0]]


def test_labels_of_adjusted_logits():
    """If rows are left out and losses fed back, the labels of the others have to be given."""
    step = adjusting(lambda2=0.3)
    with pytest.raises(
        ValueError, match=r"adjusted_logits got 2 logits, but 5 samples.*adjusted_logits\(logits, labels"
    ):
        step.adjust(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got 2 logits, but labels of shape"):
        step.adjust(torch.zeros(2, 3), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"needs the class of each sample in \[0, 3\), got 1 to 3"):
        step.adjust(torch.zeros(2, 3), torch.tensor([1, 3]))
    step.start(draw_of(PROBS, REFERENCE), torch.tensor(LABELS))
    step.adjust(torch.zeros(2, 3), torch.tensor([1, 1]))
    assert step.finish()[0, :-1].tolist() == [0, 2, 0]
    adjusting().adjust(torch.zeros(2, 3))  # not fed back: no labels are needed


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("lambda2", [0.0, 0.3])
def test_checkpointed_function_counts_once(lambda2, use_reentrant):
    """Samples count once if a checkpointed function is computed again in the backward pass."""
    step = adjusting(lambda2=lambda2)
    logits, y = torch.zeros(5, 3, requires_grad=True), torch.tensor(LABELS)

    def loss(z):
        return step.mean(F.cross_entropy(step.adjust(z), y, reduction="none"))

    torch.utils.checkpoint.checkpoint(loss, logits, use_reentrant=use_reentrant).backward()
    assert logits.grad.abs().sum() > 0
    assert step.finish()[:2].tolist() == [[2, 1, 2, 1], [2, 1, 2, 1]]


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("lambda2", [0.0, 0.3])
@pytest.mark.parametrize("K", [2, 3])
def test_compiled_adjustment_compiles_once(backend, lambda2, K):
    """The compiled logits are right in every batch, and compiled once."""
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    step = adjusting(K, lambda2=lambda2)
    compiled = torch.compile(lambda z: step.adjust(2.0 * z), backend=counting, fullgraph=True)
    rng = np.random.default_rng(0)
    for _ in range(4):
        probs, labels = rng.dirichlet(np.ones(K)), rng.integers(0, K, 6)
        z = torch.tensor(rng.random((6,) if K == 2 else (6, K)), dtype=torch.float32)
        step.start(draw_of(probs, REFERENCE[:K]), torch.tensor(labels))
        np.testing.assert_allclose(compiled(z), slow_adjusted(2.0 * z, probs, REFERENCE[:K]), rtol=1e-5, atol=1e-5)
        samples, _, sums = step.finish()[:, :-1]
        assert samples.tolist() == np.bincount(labels, minlength=K).tolist()
        expected = np.bincount(labels, slow_costs(2.0 * z, labels, K), minlength=K) * (lambda2 > 0)
        np.testing.assert_allclose(sums, expected, rtol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda step: pickle.loads(pickle.dumps(step))])
def test_copy_is_closed(duplicate):
    """A copy that is made during a training step is not in a step."""
    step = adjusting()
    assert step.is_open
    assert not duplicate(step).is_open
    assert step.is_open


def test_host_copy():
    """The copy on the host equals the value."""
    value = torch.arange(6.0).reshape(2, 3)
    assert copy_to_host(value)().tolist() == value.tolist()
    assert copy_to_host(value)().device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("correction", ["weights", "logits"])
def test_step_does_not_wait_for_gpu(correction):
    """No part of a step makes the host wait for the GPU."""
    step = StepCorrection(FeedbackController(3, lambda2=0.3), torch.device("cuda"), FairSettings(correction=correction))
    logits = torch.randn(5, 3, device="cuda", requires_grad=True)
    step.start(draw_of(PROBS, REFERENCE), torch.tensor(LABELS))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.start(draw_of(PROBS, REFERENCE), torch.tensor(LABELS))
        step.mean(step.adjust(logits).square().sum(1)).backward()
        sums = step.finish()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums[0, :-1].tolist() == [2, 1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_copy_is_a_snapshot():
    """The copy from a GPU is the value at the time of the copy."""
    value = torch.arange(6.0, device="cuda")
    copy = copy_to_host(value)
    value.zero_()
    assert copy().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
