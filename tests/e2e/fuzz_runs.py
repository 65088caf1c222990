"""Random combinations of loaders, settings, cuts and ranks: what a combination is, how it runs, what has to hold.

A combination is a function of its number: ``PYTHONPATH=tests python tests/e2e/fuzz_runs.py 17 42`` prints these two and
their faults; with ``0-999``, those of the range that have faults.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as L
import numpy as np
import reference as law
import torch
from lightning_helpers import TARGET, Indexed, fit, loader
from loader_runs import Bulk, Delegating, KeepsWorkers, Prefetcher, Wrapper
from resume_runs import Validated, bits
from stream_runs import Shards
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackBatchSampler, importance_weights
from lightning_fair.integration.callback import find_callback
from lightning_fair.schedules import Constant, Cosine, Join, Linear, Schedule, Shift, Step, as_schedule

K, EPOCHS = 4, 3
RANKS = "ranks"  # samplers of two ranks, without a Trainer
STREAM = "stream"

# -- a combination -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """What is trained and how. Batches of ``size`` samples are those of all ranks."""

    number: int
    kind: str
    counts: tuple[int, ...]
    size: int
    workers: int  # of ranks: 0 stands for one rank, 2 for two
    resume_workers: int
    prefetch: int
    limit: int | None  # Trainer(limit_train_batches=...)
    stop: int | None  # `on_train_batch_start` returns -1 at this batch of each epoch
    accumulate: int
    validate: int  # batches between two validations
    cut: int  # batches before the checkpoint that is resumed
    gain: str
    target: str
    feedback: str
    reference: Any
    correction: str
    max_weight: float
    horizon: float | None
    feedback_delay: int | None

    @property
    def epoch_length(self) -> int:
        """Batches of an epoch that are trained on."""
        return min(x for x in (self.limit, self.stop, math.ceil(sum(self.counts) / self.size)) if x)

    @property
    def fair(self) -> FairSampling:
        """A new callback."""
        names = ("reference", "correction", "max_weight", "horizon", "feedback_delay")
        settings = {name: getattr(self, name) for name in names} | _FEEDBACK[self.feedback]
        settings |= {"loss_ema_decay": 0.5, "num_classes": K, "seed": None if self.kind == STREAM else self.number}
        return FairSampling(_GAINS[self.gain], _TARGETS[self.target], **settings)


_GAINS: dict[str, Any] = {
    "constant": 8.0,
    "by step": Linear(0.0, 8.0, 10),
    "by epoch": Linear(2.0, 8.0, 2, unit="epoch"),
    "jump at an epoch": Step(1.0, 8.0, at=1, unit="epoch"),
    "joined": Join([Linear(0.0, 8.0, 6), Cosine(8.0, 2.0, 2, begin=1, unit="epoch")], [1], unit="epoch"),
}
_TARGETS: dict[str, Any] = {
    "uniform": "uniform",
    "prior": "prior",
    "sqrt": "sqrt",
    "mix": TARGET,
    "by step": Shift(Cosine(0.0, 1.0, 12), start="prior"),
    "jump at a step": Shift(Step(0.0, 1.0, at=7), start=TARGET, end="uniform"),
    "by epoch": Shift(Linear(0.0, 1.0, 2, unit="epoch"), start="sqrt", end=TARGET),
    "jump at an epoch": Shift(Step(0.0, 1.0, at=1, unit="epoch"), start=(0.7, 0.1, 0.1, 0.1), end="uniform"),
}
_STREAM_TARGETS = ["uniform", "mix", "jump at a step", "jump at an epoch"]  # a stream has no prior
_FEEDBACK: dict[str, dict[str, Any]] = {
    "none": {},
    "losses to draw": {"lambda2": 0.3},
    "losses to objective": {"lambda2": 0.3, "feedback_to": "objective"},
    "validation to draw": {"lambda2": 0.3, "feedback": "val/recall", "feedback_to": "draw"},
    "validation to objective": {"feedback": "val/recall"},
}
_WRAPPERS = {kind.__name__: kind for kind in (Wrapper, Prefetcher, Delegating)}
_KINDS = ["plain", "persistent", "persistent", "FairDataModule", "bulk", KeepsWorkers.__name__, *_WRAPPERS]


def combination(number: int) -> Combination:
    """Return the combination of this number."""
    choose = Random(number)
    kind = choose.choice([*_KINDS, *_KINDS, *[RANKS] * 4, STREAM, STREAM])
    size, prefetch, accumulate = choose.choice([4, 8]), choose.choice([1, 2, 3]), choose.choice([1, 1, 2])
    counts = tuple(choose.randint(low, 3 * low) for low in (12, 6, 3, 2))
    # Without workers more often than with: their start takes most of the time.
    workers = [(0, 2), (2, 0), (2, 2)] if kind == RANKS else [*[(0, 0)] * 4, (0, 2), (2, 0), (2, 2)]
    # A cut within a window of accumulated gradients, or an epoch that a hook ends there, loses these gradients.
    full = math.ceil(sum(counts) / size)
    short = choose.randint(2, full - 1) // accumulate * accumulate
    limit, stop = choose.choice([(None, None), (short, None), (None, short)])
    length = min(x for x in (limit, stop, full) if x)
    epoch, place = choose.randrange(EPOCHS), choose.randrange(0, length, accumulate)
    mixes = ["target", "uniform", (0.3, 0.1, 0.2, 0.4), *([] if kind == STREAM else ["prior"])]
    return Combination(
        *(number, kind, counts, size, *choose.choice(workers), prefetch, limit, stop, accumulate),
        validate=choose.randint(2, length),
        cut=epoch * length + place or length,
        gain=choose.choice([*_GAINS]),
        target=choose.choice(_STREAM_TARGETS if kind == STREAM else [*_TARGETS]),
        feedback=choose.choice([*_FEEDBACK]),
        reference=choose.choice(mixes),
        correction="weights" if kind == RANKS else choose.choice(["weights", "logits"]),
        max_weight=choose.choice([2.0, 10.0, math.inf]),
        horizon=choose.choice([16.0, 16.0, None]),
        # Larger than the lead of each loader (a `Prefetcher` holds a batch), so that the workers do not matter.
        feedback_delay=None if kind == STREAM else choose.choice([2 * prefetch + 2, 2 * prefetch + 4, None]),
    )


# -- how it runs -------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A batch that was trained on."""

    draw: Any
    indices: list[int]
    labels: list[int]
    weights: np.ndarray
    offsets: np.ndarray  # what was added to the logits
    losses: np.ndarray
    epoch: int


@dataclass
class Run:
    """What a run did, and the state at its end."""

    steps: list[Trained]
    trained: np.ndarray  # samples of each class that were reported
    trained_mix: np.ndarray
    model: Any = None


class Fuzzed(Validated):
    """Ends its epochs early, saves a checkpoint inside a step, and records its offsets."""

    def __init__(self, plan: Combination, checkpoint: Path | None) -> None:
        super().__init__()
        self.plan, self.checkpoint = plan, checkpoint
        self.trained: list[Trained] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.plan.stop else None

    def adjusted_logits(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        adjusted = super().adjusted_logits(logits, labels)
        self.offsets = (adjusted - logits)[0].detach().double().numpy()
        return adjusted

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if self.checkpoint and self.before + len(self.steps) == self.plan.cut:
            self.trainer.save_checkpoint(self.checkpoint)  # as at an exception in this step
        loss = super().training_step(batch, batch_idx)
        step, draw = self.steps[-1], find_callback(self.trainer)._run.current.draw
        self.trained.append(
            Trained(
                draw, step.indices, step.labels, step.weights, self.offsets, step.losses, self.trainer.current_epoch
            )
        )
        return loss


class Loaders(L.LightningDataModule):
    def __init__(self, plan: Combination, workers: int) -> None:
        super().__init__()
        self.plan, self.workers = plan, workers

    def train_dataloader(self) -> Any:
        plan, workers = self.plan, self.workers
        settings: dict[str, Any] = {"num_workers": workers, "prefetch_factor": plan.prefetch if workers else None}
        settings["persistent_workers"] = workers > 0 and plan.kind == "persistent"
        if plan.kind == STREAM:
            source = Shards(sum(plan.counts))
            stream = FairStream(source, batch_size=plan.size, buffer_size=16, save_buffers=True)
            return DataLoader(stream, plan.size, **settings)
        if plan.kind == "bulk":
            data = Bulk(plan.counts)
            batches = BatchSampler(RandomSampler(data), plan.size, drop_last=False)
            return DataLoader(data, batch_size=None, sampler=batches, **settings)
        if plan.kind == KeepsWorkers.__name__:
            return KeepsWorkers(Indexed(plan.counts), plan.size, shuffle=True, **settings)
        plain = loader(Indexed(plan.counts), batch_size=plan.size, **settings)
        return _WRAPPERS[plan.kind](plain) if plan.kind in _WRAPPERS else plain

    def val_dataloader(self) -> DataLoader:
        return loader(Indexed((4, 4, 4, 4)), shuffle=False)


def run(plan: Combination, workers: int, save: Path | None = None, resume: Path | None = None) -> Run:
    """Train with new objects, from the start or from a checkpoint."""
    if plan.kind == RANKS:
        return run_ranks(plan, 1 + bool(workers), save, resume)
    L.seed_everything(plan.number + workers, verbose=False)  # it must not matter for the draws
    module, fair, data = Fuzzed(plan, save), plan.fair, Loaders(plan, workers)
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "limit_train_batches": plan.limit}
    settings |= {"accumulate_grad_batches": plan.accumulate, "val_check_interval": plan.validate}
    if "validation" not in plan.feedback:
        settings |= {"limit_val_batches": 0, "val_check_interval": None}
    source, callbacks = (FairDataModule(data, fair=fair), []) if plan.kind == "FairDataModule" else (data, [fair])
    fit(module, source, *callbacks, ckpt=resume, num_sanity_val_steps=0, **settings)
    trained = fair.sampler.handed_out if plan.kind == STREAM else fair.sampler.trained
    return Run(module.trained, trained, fair.controller.trained_mix, module.state_dict())


def run_ranks(plan: Combination, world_size: int, save: Path | None, resume: Path | None) -> Run:
    """Draw and report as a Trainer does on ranks whose loaders draw ahead, each by another number, without a model."""
    labels = Indexed(plan.counts).targets.numpy()
    settings, full = plan.fair.settings, math.ceil(sum(plan.counts) / plan.size)
    samplers = [
        settings.make_sampler(labels, plan.size // world_size, full, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    before, steps = 0, []
    for sampler in samplers:
        sampler.controller.feedback_delay = plan.feedback_delay or 16
        if resume:
            before, state = torch.load(resume, weights_only=True)
            sampler.restore(state)
    for epoch in range(before // plan.epoch_length, EPOCHS):
        position = before + len(steps) - epoch * plan.epoch_length
        for sampler in samplers:
            sampler.start_iteration(epoch, within_epoch=position > 0, keep_delivered=False)
        loaders = [_drawn_ahead(sampler, 2 * plan.prefetch * rank) for rank, sampler in enumerate(samplers)]
        for _, *draws in zip(range(position, plan.epoch_length), *loaders, strict=False):
            number = before + len(steps)
            if save and number == plan.cut:
                torch.save((number, samplers[-1].capture()), save)
            steps.append(_report(plan, samplers, draws, number, epoch))
        for sampler in samplers:
            sampler.end_epoch()
    return Run(steps, samplers[-1].trained, samplers[-1].controller.trained_mix)


def _drawn_ahead(sampler: FeedbackBatchSampler, lead: int) -> Iterator[Any]:
    """Yield the draws of a loader that holds ``lead`` batches."""
    batches = iter(sampler)
    for _ in zip(range(lead), batches):  # noqa: B905
        pass
    while next(batches, None) is not None or sampler.num_undelivered:
        yield sampler.deliver()


def _report(
    plan: Combination, samplers: list[FeedbackBatchSampler], draws: list[Any], number: int, epoch: int
) -> Trained:
    """Report the batch of all ranks, with losses that depend on its samples and its number."""
    draw, indices = draws[0], sorted(index for each in draws for index in each.indices)
    labels = samplers[0].labels[indices]
    losses = 1.0 + labels + np.sin(np.add(indices, number))
    sums = [np.bincount(labels, weights, minlength=K) for weights in (None, losses)]
    for sampler, own in zip(samplers, draws, strict=True):
        controller = sampler.controller
        sampler.report(own, *((sums[0], sums[1], sums[0]) if controller.feeds_train_losses else (sums[0],)))
        if controller.objective.feedback == "validation" and number % plan.validate == 0:
            controller.report_validation(np.abs(np.sin(np.arange(K) + number)))
    weights = importance_weights(labels, draw.reference, draw.probs, samplers[0].controller.max_weight)
    return Trained(draw, indices, labels.tolist(), weights.double().numpy(), np.zeros(K), losses, epoch)


# -- what has to hold --------------------------------------------------------------------------------------------


def faults(plan: Combination) -> list[str]:
    """Run a combination, cut it, resume it, and return what is wrong."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint = Path(folder) / "cut.ckpt"
        whole = run(plan, plan.workers, save=checkpoint)
        rest = run(plan, plan.resume_workers, resume=checkpoint)
        wrong = _wrong(plan, whole)
        if plan.kind == STREAM:
            wrong += [f"resumed: {each}" for each in _wrong(plan, rest, first=plan.cut)]
            # Another number of workers cannot continue, and losses reach workers at other times.
            if plan.workers == plan.resume_workers and (not plan.workers or plan.feedback == "none"):
                wrong += _differences("resumed", whole, rest, plan.cut)
            return wrong
        wrong += _differences("resumed", whole, rest, plan.cut)
        if plan.workers:
            wrong += _differences("without workers", whole, run(plan, 0))
        return wrong


def _wrong(plan: Combination, run: Run, first: int = 0) -> list[str]:
    """Return what is wrong with a run by itself, whose first batch has this number."""
    steps, is_stream = run.steps, plan.kind == STREAM
    draws = [step.draw for step in steps]
    used = np.bincount(np.concatenate([step.indices for step in steps]), minlength=sum(plan.counts))
    by_class = np.split(used, np.cumsum(plan.counts)[:-1])
    reported = np.sum([np.bincount(step.labels, minlength=K) for step in steps], axis=0)
    keeps_reference = "objective" not in plan.feedback
    right = {
        "length": len(steps) > 0 and (is_stream or len(steps) == EPOCHS * plan.epoch_length),
        "own draws": all(_is_own(step, is_stream) for step in steps),
        "order of the draws": [draw.draw_id for draw in draws] == [*range(first, first + len(steps))],
        "gain": all(step.draw.alpha == _gain(plan)(step.draw.draw_id, step.epoch) for step in steps),
        "target": all(step.draw.progress == _progress(plan)(step.draw.draw_id, step.epoch) for step in steps),
        "reference": all(not keeps_reference or np.allclose(draw.reference, _reference(plan, draw)) for draw in draws),
        "weights": all(np.allclose(step.weights, _weights(plan, step), rtol=1e-5) for step in steps),
        "offsets": all(np.allclose(step.offsets, _offsets(plan, step), atol=1e-5) for step in steps),
        "counts": is_stream or np.array_equal(run.trained, reported),
        "even use": is_stream or all(np.ptp(uses) <= 1 for uses in by_class),
        "law": is_stream or plan.feedback.endswith("draw") or _follows_law(plan, run),
    }
    return [name for name, holds in right.items() if not holds]


def _is_own(step: Trained, is_stream: bool) -> bool:
    """Return whether a batch is that of its draw, whose class counts are the floor or the ceiling of ``size * p``."""
    counts = np.bincount(step.labels, minlength=K)
    if is_stream:
        return np.array_equal(counts, step.draw.counts)
    is_rounded = bool((np.abs(counts - len(step.labels) * step.draw.probs) < 1 + 1e-9).all())
    return set(step.draw.indices) <= set(step.indices) and np.array_equal(counts, step.draw.counts) and is_rounded


def _gain(plan: Combination) -> Schedule:
    return as_schedule(_GAINS[plan.gain])


def _progress(plan: Combination) -> Schedule:
    target = _TARGETS[plan.target]
    return target.progress if isinstance(target, Shift) else Constant(0.0)


def _mix(plan: Combination, name: Any) -> np.ndarray:
    """Return a class mix, from its name and the data alone."""
    powers = {"uniform": 0.0, "sqrt": 0.5, "prior": 1.0}
    mix = np.array(plan.counts) ** powers[name] if isinstance(name, str) else np.array(name)
    return mix / mix.sum()


def _target(plan: Combination, progress: float) -> np.ndarray:
    target = _TARGETS[plan.target]
    if not isinstance(target, Shift):
        return _mix(plan, target)
    return (1 - progress) * _mix(plan, target.start) + progress * _mix(plan, target.end)


def _reference(plan: Combination, draw: Any) -> np.ndarray:
    name = plan.reference
    return _target(plan, draw.progress) if isinstance(name, str) and name == "target" else _mix(plan, name)


def _weights(plan: Combination, step: Trained) -> np.ndarray:
    if plan.correction == "logits":
        return np.ones(len(step.labels))
    ratios = step.draw.weight_reference[step.labels] / step.draw.probs[step.labels]
    return np.minimum(ratios, plan.max_weight)


def _offsets(plan: Combination, step: Trained) -> np.ndarray:
    if plan.correction == "weights":
        return np.zeros(K)
    return np.array(law.offsets(step.draw.probs, step.draw.reference))


def _follows_law(plan: Combination, run: Run) -> bool:
    """Return whether the class mixes are those of the formulas, written anew, for the batches that were trained on."""
    q = trained_mix = _target(plan, 0.0)
    for number, step in enumerate(run.steps):
        old, q = q, _target(plan, _progress(plan)(number, step.epoch))
        trained_mix = trained_mix * q / old / (trained_mix * q / old).sum()
        gain, horizon = _gain(plan)(number, step.epoch), plan.horizon or law.horizon(plan.size, q)
        p = law.law(q, trained_mix, alpha=gain, max_weight=plan.max_weight)
        if not np.allclose(step.draw.probs, p, rtol=1e-9):
            return False
        trained_mix = np.array(law.follow(trained_mix, np.bincount(step.labels, minlength=K), horizon))
    return True


def _differences(name: str, whole: Run, other: Run, cut: int = 0) -> list[str]:
    """Return the names of the records that are not the same bit for bit from this batch on."""
    steps, others = whole.steps[cut:], other.steps
    same = {
        "batches": [step.indices for step in steps] == [step.indices for step in others],
        "class mixes": bits([step.draw.probs for step in steps]) == bits([step.draw.probs for step in others]),
        "weights": bits([step.weights for step in steps]) == bits([step.weights for step in others]),
        "offsets": bits([step.offsets for step in steps]) == bits([step.offsets for step in others]),
        "losses": bits([step.losses for step in steps]) == bits([step.losses for step in others]),
        "counts": np.array_equal(whole.trained, other.trained),
        "model": bits(whole.model) == bits(other.model),
    }
    return [f"{name}: other {record}" for record, is_same in same.items() if not is_same]


def main(arguments: Sequence[str]) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    ranges = [[int(end) for end in argument.split("-")] for argument in arguments]
    numbers = [number for ends in ranges for number in range(ends[0], ends[-1] + 1)]
    num_wrong = 0
    for number in numbers:
        plan, start = combination(number), time.perf_counter()
        try:
            wrong = faults(plan)
        except Exception as error:
            wrong = [repr(error)[:300]]
        num_wrong += bool(wrong)
        if wrong or len(numbers) < 10:
            print(f"{time.perf_counter() - start:5.1f} s  {plan}\n    {'; '.join(wrong) or 'right'}", flush=True)
    seconds = sum(os.times()[:4])
    print(f"{seconds:.0f} s of CPU; {num_wrong} of {len(numbers)} combinations have faults")


if __name__ == "__main__":
    main(sys.argv[1:])
