"""The state of one fit: its fair loader, its draws on their way, and its statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fair.common.arrays import to_arrays
from lightning_fair.common.distributed import count_ranks, sum_over_ranks
from lightning_fair.common.label_values import ClassLabels
from lightning_fair.common.labels import look_up_labels
from lightning_fair.common.saved_states import (
    check_state,
    checksum,
    describe_damage,
    integer,
    number,
    of_type,
    optional,
)
from lightning_fair.control.draw import Draw
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.objective import describe_reference
from lightning_fair.control.target_values import describe_mixes
from lightning_fair.dataloaders.fair_loader import DeliveredBatch, FairLoader
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_scan import find_loader_labels
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.loss_check import LossCheck
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_checks import StepChecks
from lightning_fair.integration.step_correction import StepCorrection, copy_to_host, count_labels
from lightning_fair.integration.training_length import TrainingLength
from lightning_fair.integration.validation_feedback import ValidationFeedback
from lightning_fair.monitoring.dashboard import Dashboard
from lightning_fair.monitoring.weight_statistics import BatchWeights, RunTotals
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

if TYPE_CHECKING:
    import lightning.pytorch as L

_RESTART = 'FairSampling(resume="restart") keeps the model, and starts the class mix anew.'
_STATE = {  # see `common/saved_states.py`; source and label check have their own
    "sampler": of_type(Mapping, type(None)),
    "feedback_delay": optional(integer(1)),
    "label_check": of_type(Mapping, type(None)),
    "largest_weight": number(0.0),
    "clipped_sum": number(0.0),
    "run_sums": [number(0.0)] * 3,
    "horizon_sums": [number(0.0)] * 3,
    "checksum": integer(),
}
_DEFAULT_DELAY = 16  # above the prefetching of most loaders, so that their batches do not depend on the workers


@dataclass(eq=False)
class Run:
    """Everything that :class:`~lightning_fair.FairSampling` knows of one fit."""

    settings: FairSettings
    trainer_id: int = 0
    seed: int | None = None  # of the draws, the same on all ranks; None without a Trainer
    facts: dict[str, Any] = field(default_factory=dict)  # what has to be the same on all ranks
    sampler: FeedbackBatchSampler | None = None  # draws the batches of a data set
    tracker: StreamTracker | None = None  # follows the draws of a stream
    loader: FairLoader | None = None  # None outside of a fit
    validation_feedback: ValidationFeedback | None = None  # None if no metric is fed back
    in_search: bool = False  # whether one of Lightning's finders tries steps; at the end it restores a checkpoint
    class_names: Sequence[str] = ()
    min_delay: int | None = None  # batches after which the losses of a draw are known; None for a stream
    steps_on_device: int = 0  # newest steps that a device may still be working on
    step_correction: StepCorrection | None = None  # None if the module has neither the mixin nor a hook
    step_checks: StepChecks = field(default_factory=StepChecks)
    loss_check: LossCheck | None = None
    length: TrainingLength = field(default_factory=TrainingLength)
    total_batches: int | None = None  # of the training that the sampler was made for, if their number was known
    current: DeliveredBatch | None = None  # the batch in the training step
    # Batches that were trained on, with a function that returns their sums; None: trained on as drawn.
    unreported: deque[tuple[Draw, Callable[[], Tensor] | None]] = field(default_factory=deque)
    has_warned_of_change: bool = False  # of labels that change during the fit
    totals: RunTotals = field(default_factory=RunTotals)
    dashboard: Dashboard = field(default_factory=Dashboard)
    checkpoint: Mapping[str, Any] | None = None  # a state that waits for the loader
    checkpoint_delay: int | None = None
    abandoned: Mapping[str, Any] | None = None  # state of a source in place of which the class mix starts anew
    has_begun: bool = False  # whether this fit has begun to draw
    label_check: LabelCheck | None = None
    groups: bool = False  # whether the labels divide the classes of the data set into groups
    scanned_labels: tuple[Any, ClassLabels] | None = None  # a data set, and its labels

    @property
    def source(self) -> DrawSource | None:
        """The sampler or the stream tracker; None before the loader is known."""
        return self.sampler if self.sampler is not None else self.tracker

    def count_batches(self, epoch_batches: int) -> int | None:
        """Return the batches of the whole training, given those of the loader; None if their number is not known."""
        has_several_loaders = self.settings.dataloader is not None  # the length of an epoch depends on the others too
        return self.length.batches(None if has_several_loaders else epoch_batches)

    @property
    def noun(self) -> str:
        """Word for a class in messages and charts."""
        if self.source is not None and self.source.controller.label_kind is not None:
            return "label"
        return "group" if self.groups else "class"

    def next_fit(self, trainer: L.Trainer) -> Run:
        """Return the run of the fit that begins; it continues this one if the Trainer continues its training."""
        if self.source is None or self.trainer_id != id(trainer) or not trainer.global_step:
            return Run(self.settings, id(trainer), scanned_labels=self.scanned_labels)
        self.flush_reports()
        self.source.abandon_epoch()
        return replace(self, loader=None, step_correction=None, current=None, has_begun=False)

    def find_labels(self, loader: DataLoader[Any]) -> ClassLabels:
        """Return the label of every sample; a data set is scanned once, however often its loader is made again."""
        dataset, settings = loader.dataset, self.settings
        labels = look_up_labels(dataset, settings.labels, settings.stated_classes)
        if labels is not None:
            return labels
        if self.scanned_labels is None or self.scanned_labels[0] is not dataset:
            self.scanned_labels = dataset, find_loader_labels(loader, settings.labels, settings.stated_classes)
        return self.scanned_labels[1]

    def announce_groups(self, message: str) -> None:
        """Print which groups are in which class, and speak of groups from now on."""
        self.groups = True
        if self.step_correction is not None:
            self.step_correction.noun = self.noun
        rank_zero_info(message)

    def begin_step(self) -> None:
        """Take the batch of the training step that begins, and set its correction."""
        self.current = self.loader.pop_pending() if self.loader is not None else None
        if self.current is not None and self.step_correction is not None:
            self.step_checks.check_numbers(self.step_correction, self.label_check, self.class_names)
            self.step_correction.start(self.current.draw, self.current.labels)

    def end_step(self, *, has_loss: bool, device: torch.device) -> Draw | None:
        """Prepare the report of the batch, and return its draw; None if the batch was not trained on."""
        if self.current is None and self.loader is not None:
            self.current = self.loader.pop_pending()  # a batch that is None has no `on_train_batch_start`
        current, self.current = self.current, None
        if current is None or self.source is None:
            return None
        draw, trained = current.draw, has_loss and len(current.labels) > 0
        # Every rank takes part in one sum per step, whatever its batch was.
        sums = None
        if self.step_correction is not None:
            sums = self.step_correction.finish(trained=trained)
        elif not (trained and current.as_drawn and self.source.world_size == 1):
            sums = (count_labels(current.labels, draw.counts.size) * trained).to(device)
        if sums is not None:
            sums = sum_over_ranks(sums)
            if (copies := count_ranks() // self.source.world_size) > 1:  # ranks with the same share
                sums = sums / copies
        self.unreported.append((draw, None if sums is None else copy_to_host(sums)))
        self.flush_reports(keep=self.steps_on_device)
        return draw if trained else None

    def flush_reports(self, keep: int = 0) -> None:
        """Report all but the newest ``keep`` batches to the source."""
        while len(self.unreported) > keep and self.source is not None:
            draw, read_sums = self.unreported.popleft()
            sums = None if read_sums is None else read_sums().double().numpy()
            if sums is None or sums.ndim == 1:  # samples of each class, without losses
                self.source.report(draw, sums)
                continue
            assert self.step_correction is not None
            self.step_checks.check_calls(self.step_correction, sums)
            (counts, num_finite, losses), has_losses = sums[:, :-1], sums[0, -1] > 0
            if has_losses and self.sampler is not None:
                self.step_checks.check_counts(self.step_correction, counts, draw, self.class_names)
            # A closure that runs several times (LBFGS) trains on more samples than were drawn.
            counts = self.source.clip_counts(counts, draw)
            self.source.report(draw, counts, *((losses, num_finite) if has_losses else ()))

    def add_to_totals(self, draw: Draw) -> BatchWeights:
        """Count a batch that was trained on, and return the statistics of its weights."""
        assert self.source is not None
        settings, weights = self.settings, BatchWeights(draw.size)
        if self.step_correction is not None and settings.correction == "weights":
            weighed = draw.weigh(self.source.controller.max_weight, settings.exponent)
            weights = BatchWeights.summarize(*weighed, normalize=settings.normalize)
        self.totals.add(weights, self.source.controller.horizon)
        return weights

    def end_epoch(self) -> None:
        """Report all batches, and end the epoch."""
        assert self.source is not None
        self.flush_reports()
        self.current = None
        if self.step_correction is not None:
            self.step_correction.is_open = False
        if self.loss_check is not None:
            self.loss_check.end_epoch()
        self.source.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as of the last batch that was trained on."""
        self.flush_reports()
        if self.source is None and self.checkpoint is not None:
            return dict(self.checkpoint)
        sampler = None if self.source is None else self.source.capture()
        delay = self.checkpoint_delay if self.source is None else self.source.controller.feedback_delay
        check = None if self.source is None or self.label_check is None else self.label_check.state_dict()
        state = {"sampler": sampler, "feedback_delay": delay, "label_check": check, **vars(self.totals)}
        return {**state, "checksum": checksum(state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned: now, or as soon as the loader is known.

        With ``resume="restart"``, start anew in its place. A state that is loaded after the first draw is that of
        a search, which goes back to its own checkpoint.
        """
        if self.settings.resume == "restart" and not (self.has_begun or self.in_search):
            self._abandon(state)
            return
        _offer_restart(check_state, "callback's", state, _STATE)
        self.checkpoint = state
        if self.source is not None and self.loader is not None:
            self.restore_source(resized=self.in_search)
            self.unreported.clear()
            self.current = None
            if self.step_correction is not None:
                self.step_correction.is_open = False
            if state["sampler"] is None:
                self.source.reset()  # the checkpoint of a search may be older than the source
                self.has_begun = False
            self.loader.restart = True  # some versions of Lightning continue with the old iterator
        self.in_search = False

    def restore_source(self, *, resized: bool = False) -> None:
        """Set the feedback delay of the source, and take over the state that has waited for it, if there is one.

        If the sampler is ``resized``, a finder may have changed the batch size. Then the state is restored as on
        another number of ranks.
        """
        assert self.source is not None
        state, self.checkpoint = self.checkpoint, None  # if it is refused, nothing of it stays
        of_source = None if state is None else state["sampler"]
        if of_source is not None and resized and self.sampler is not None:
            of_source = {**of_source, "batch_size": self.sampler.batch_size}
        if state is not None:
            _offer_restart(self._check, state, of_source)
            self.checkpoint_delay = state["feedback_delay"]
            self.totals = RunTotals(**{name: state[name] for name in vars(self.totals)})
        if self.min_delay is not None:
            self.source.controller.feedback_delay = self._choose_delay(self.min_delay)
        if self.abandoned is not None:
            changes = _describe_changes(self.abandoned, self.source.capture())
            rank_zero_info(
                f'resume="restart": the model is that of the checkpoint, and the class mix starts anew.{changes}'
            )
            self.abandoned = None
        if of_source is not None:
            self.source.restore(of_source)
        if state is not None and state["label_check"] is not None and self.label_check is not None:
            self.label_check.load_state_dict(state["label_check"])

    def _check(self, state: Mapping[str, Any], of_source: Mapping[str, Any] | None) -> None:
        """Refuse a state. The checksum is compared last, because it does not tell which key has changed."""
        assert self.source is not None
        if of_source is not None:
            self.source.check_state(of_source)
        if state["label_check"] is not None and self.label_check is not None:
            self.label_check.check_state(state["label_check"])
        if (expected := _checksum(state)) != state["checksum"]:
            raise ValueError(describe_damage("callback's", f"checksum must be {expected}, got {state['checksum']}"))

    def _abandon(self, state: Mapping[str, Any]) -> None:
        """Start anew in place of a checkpoint's state, which may be damaged."""
        is_intact = isinstance(state, Mapping) and repr(state.get("checksum")) == repr(_checksum(state))
        self.abandoned, self.totals = (is_intact and state.get("sampler")) or {}, RunTotals()
        if self.source is not None:
            self.source.reset()
            if self.loader is not None:
                self.restore_source()

    def begin_at(self, epoch: int, position: int, step: int) -> None:
        """Begin to draw. A mix that starts in the middle of a training takes the place of the Trainer.

        Args:
            epoch: Number of the epoch, from 0.
            position: Batches of this epoch that were trained on.
            step: Batches of all epochs that were trained on.
        """
        assert self.source is not None
        self.has_begun = True
        if step and not self.source.controller.made:
            state = self.source.capture()
            controller = {**state["controller"], "draws": step, "epoch": epoch}
            place = {} if self.sampler is None else {"epoch": epoch, "position": position}  # a stream has none
            self.source.restore({**state, **place, "controller": controller})

    def _choose_delay(self, min_delay: int) -> int:
        """Return the delay of the settings or the checkpoint, else the default or the smallest of the loader."""
        wanted = self.settings.feedback_delay or self.checkpoint_delay
        if wanted and wanted < min_delay:
            rank_zero_warn(
                f"feedback_delay={wanted} is less than the {min_delay} batches after which losses are known with this "
                "loader, so the batches will differ from those with fewer workers. Set "
                f"feedback_delay={min_delay} or more, or use fewer workers."
            )
        return self.settings.feedback_delay or max(wanted or _DEFAULT_DELAY, min_delay)


def _checksum(state: Mapping[str, Any]) -> int:
    return checksum({name: value for name, value in state.items() if name != "checksum"})


def _offer_restart(check: Callable[..., None], *args: Any) -> None:
    """Call a check of a state; its error names the setting that does without the state."""
    try:
        check(*args)
    except ValueError as error:
        raise ValueError(f"{error} {_RESTART}") from None


def _describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return how the data and the settings of a source differ from those in a checkpoint; empty if they do not."""
    if _layout(old) != _layout(new):
        return " The checkpoint is of other data, of another version of lightning-fair, or damaged."
    before, now = _facts(old), _facts(new)
    changes = [f"{name} {before[name]} -> {value}" for name, value in now.items() if before[name] != value]
    return f" Changed: {', '.join(changes)}." if changes else ""


def _layout(state: Mapping[str, Any]) -> tuple[Any, ...]:
    versions = state.get("version"), state.get("stream_version"), state.get("controller", {}).get("version")
    return (state.keys(), *versions)


def _facts(state: Mapping[str, Any]) -> dict[str, Any]:
    target, objective = (to_arrays(state["controller"][name]) for name in ("target", "objective"))
    mixes = describe_mixes(target["start"], target["end"])
    reference = describe_reference(objective["base"])
    return {**state.get("data", {}), "batch size": state.get("batch_size"), "target": mixes, "reference": reference}
