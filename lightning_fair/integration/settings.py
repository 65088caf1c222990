"""The settings of ``FairSampling``: checked once, then only read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from types import NoneType
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import to_plain
from lightning_fair.common.checks import (
    RULES,
    check,
    check_choice,
    check_names,
    check_number,
    check_number_of_names,
    check_text,
    show,
)
from lightning_fair.common.class_mix import TRAINING_TARGETS, check_kind, check_mix
from lightning_fair.common.label_sets import LabelSets, complete_names, numbers_as_names
from lightning_fair.common.labels import Labels, class_names, to_class_labels
from lightning_fair.control import law
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.objective import FeedbackTo
from lightning_fair.control.target import check_min_prob
from lightning_fair.control.target_values import Target, number_target, resolve_target, target_endpoints
from lightning_fair.integration.presets import PRESETS, Correction, PresetName
from lightning_fair.integration.training_length import is_auto, resolve_target_name
from lightning_fair.integration.unsaved_labels import UnsavedLabels, is_picklable
from lightning_fair.monitoring.class_metrics import Mode, feedback_mode
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler
from lightning_fair.sampling.sampler_controller import EmptyClasses
from lightning_fair.schedules import Schedule, Shift, as_schedule
from lightning_fair.streaming.stream import FairStream

Resume: TypeAlias = Literal["continue", "restart"]

_LAW = ("alpha", "lambda1", "lambda2", "max_weight", "min_prob", "horizon", "loss_ema_decay")
_OBJECTIVE = ("feedback_to", "feedback_gain")


@dataclass(frozen=True, eq=False)
class FairSettings:
    """All settings of :class:`~lightning_fair.FairSampling`, which documents each of them.

    The constructor takes the values that are None from the preset, and checks every value. Settings that have to fit
    the data are checked when a sampler or a controller is made.
    """

    alpha: float | Schedule = 8.0
    target_probs: Target | Shift = None
    preset: PresetName = "balanced"
    lambda1: float = 1.0
    lambda2: float = None  # type: ignore[assignment]
    max_weight: float = 10.0
    min_prob: float = 0.0
    horizon: float | None = None
    loss_ema_decay: float = 0.9
    reference: Target = None
    correction: Correction = None  # type: ignore[assignment]
    logits: str | None = None
    feedback: str = None  # type: ignore[assignment]
    feedback_mode: Mode | None = None
    feedback_to: FeedbackTo = None  # type: ignore[assignment]
    feedback_gain: float = 3.0
    max_repeats: float = 40.0
    normalize: bool = False
    exponent: float = 1.0
    labels: Labels = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    dataloader: int | str | None = None
    steps_per_epoch: int | None = None
    empty_classes: EmptyClasses = "error"
    feedback_delay: int | None = None
    seed: int | None = None
    resume: Resume = "continue"

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, tuple(PRESETS))
        check_text("feedback", self.feedback, "'train' or the name of a metric")
        check_text("logits", self.logits, "the name of a submodule")
        self._apply_preset()
        for field in fields(self):
            if field.name in RULES:
                value = check(field.name, getattr(self, field.name), optional=field.default is None)
                object.__setattr__(self, field.name, value)
        object.__setattr__(self, "feedback_mode", feedback_mode(self.feedback, self.feedback_mode))
        if self.logits is not None and self.correction != "logits":
            raise ValueError(
                f"logits={self.logits!r} names the module whose output is corrected, which correction="
                f"{self.correction!r} does not do. Set correction='logits', or leave logits out."
            )
        if self.correction != "weights" and (self.normalize or self.exponent != 1.0):
            raise ValueError(f"normalize and exponent change the weights, and correction={self.correction!r} has none.")
        self._check_data_settings()
        self._check_law()

    def _check_data_settings(self) -> None:
        labels, names, key = self.labels, self.class_names, self.dataloader
        is_one = isinstance(labels, (str, Integral)) and labels != "" and not isinstance(labels, bool)
        is_many = hasattr(labels, "__len__") and not isinstance(labels, (str, bytes, Mapping, Set))
        if not (is_one or is_many or labels is None or callable(labels)):
            raise (ValueError if isinstance(labels, str) else TypeError)(
                "labels must be one class per sample or several, 'scan', a name, a position, a function of the data "
                f"set or None, got {show(labels)}."
            )
        if isinstance(key, bool) or not isinstance(key, (str, Integral, NoneType)):
            raise TypeError(f"dataloader must be the key or the position of a training loader, got {show(key)}.")
        if names is not None:
            object.__setattr__(self, "class_names", check_names("class_names", names))

    def _apply_preset(self) -> None:
        for name, value in asdict(PRESETS[self.preset]).items():
            if getattr(self, name) is None:
                is_of_metric = name == "feedback_to" and self.feedback != "train"
                object.__setattr__(self, name, "objective" if is_of_metric else value)

    def __copy__(self) -> FairSettings:
        return self  # nothing changes settings

    def __deepcopy__(self, memo: object) -> FairSettings:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        new, args, state, *_ = reduced
        # `torch.save` and YAML ask for protocol 2. Other processes ask for a later one, and get all values.
        if protocol == 2:
            is_small = isinstance(self.labels, (str, Integral, type(None)))
            state = to_plain({**state, "labels": self.labels if is_small else UnsavedLabels.of(self.labels)})
        elif callable(self.labels) and not is_picklable(self.labels):
            state = {**state, "labels": UnsavedLabels.of(self.labels)}
        return new, args, state

    @property
    def has_chosen_labels(self) -> bool:
        """Whether the user chose the labels, so that they may be groups of the data set's classes."""
        return self.labels is not None and not (isinstance(self.labels, str) and self.labels == "scan")

    @property
    def feeds_train_losses(self) -> bool:
        """Whether the losses of the training are fed back."""
        return self.feedback == "train" and self.lambda2 > 0

    @property
    def has_default_law(self) -> bool:
        """Whether the law and the target are the defaults."""
        default = FairSettings()
        names = ("target_probs", "reference", *_LAW, *_OBJECTIVE)
        return all(np.array_equal(getattr(self, name), getattr(default, name)) for name in names)

    @property
    def draw_seed(self) -> int:
        """Seed of the draws: ``seed``, or that of ``seed_everything``, or 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def names_for(
        self,
        num_classes: int,
        dataset: Any,
        label_names: Sequence[str] | None = None,
        label_kind: LabelSets | None = None,
    ) -> Sequence[str]:
        """Return a name for each class; ``label_kind`` is that of the controller.

        The names are those of the settings, or else of the labels, or else the data set's ``classes``, or else numbers.
        """
        named = complete_names(self.class_names or label_names or class_names(dataset) or (), label_kind)
        return named if len(set(named)) == num_classes else numbers_as_names(num_classes, label_kind)

    @property
    def stated_classes(self) -> int | None:
        """Number of classes that the settings state by a number, a target vector or names; None if they do not."""
        return self._known_num_classes or len(self.class_names or ()) or None

    def make_sampler(
        self,
        labels: Any,
        batch_size: int,
        steps_per_epoch: int | None = None,
        *,
        dataset: Any = None,
        previous: FeedbackBatchSampler | None = None,
        total_batches: int | None = None,
        **options: int,
    ) -> FeedbackBatchSampler:
        """Return the sampler for a data set; the arguments are those of :class:`~lightning_fair.FeedbackBatchSampler`.

        With ``dataset``, classes that the data set names count even if none of the labels is as large. If ``previous``
        is a sampler of the same classes, its controller and its epochs go on. The targets ``"auto"`` and ``"deferred"``
        depend on ``total_batches``, the batches of the whole training (None: not known). The ``options`` are ``rank``,
        ``world_size`` and ``seed``.

        Raises:
            ValueError: If a setting does not fit the data, or the target is ``"deferred"`` without ``total_batches``.
        """
        labels = to_class_labels(labels, self.stated_classes)
        sets = labels.numbers if isinstance(labels.numbers, LabelSets) else None
        num_present = int(labels.numbers.max()) + 1 if sets is None else sets.num_classes
        names = complete_names(labels.names or class_names(dataset) or (), sets)
        if labels.names is None and self.labels is not None and len(names) != num_present:
            names = ()  # of other classes, before a target_transform or of the data set itself
        if sets is not None and sets.has_unlabeled and not names:
            names = numbers_as_names(num_present, sets)  # a target can name the class of samples without a label
        num_classes = num_present if sets is not None else self._known_num_classes or max(num_present, len(names))
        counts = np.bincount(labels.numbers, minlength=num_classes) if sets is None else sets.counts
        has_other_pairs = previous is not None and sets is not None and not _have_same_pairs(previous.labels, sets)
        if previous is not None and (has_other_pairs or not self._fits(previous.class_counts, counts)):
            previous = None
        if previous is None:
            size = batch_size * options.get("world_size", 1)
            counts = counts[:num_classes]
            target = resolve_target_name(
                self.target_probs, counts, total_batches, size, self.max_repeats, label_sets=sets
            )
            controller = self._make_controller(num_classes, target, counts, names, labels.values, sets, batch_size=size)
        else:
            controller = previous.controller
        options.setdefault("seed", self.draw_seed)
        sampler = FeedbackBatchSampler(
            labels, batch_size, steps_per_epoch, controller, empty_classes=self.empty_classes, **options
        )
        if previous is not None:
            previous.withdraw()
            sampler.epoch = previous.epoch
        return sampler

    def _fits(self, old: NDArray[Any], new: NDArray[Any]) -> bool:
        """Return whether a controller made for old class counts fits the new ones."""
        has_same_target = np.array_equal(old, new) or not _is_from_data(self.target_probs, self.reference)
        return has_same_target and np.array_equal(old > 0, new > 0)

    def make_controller(self, stream: FairStream) -> FeedbackController:
        """Return the controller for a stream, which may name its classes."""
        num_classes = self.stated_classes or len(stream.classes or ())
        if not num_classes:
            raise ValueError(
                "A stream does not show how many classes it has. Set FairSampling(num_classes=...) or "
                "FairStream(class_names=[...]), or make the FairStream with a controller."
            )
        target = "uniform" if is_auto(self.target_probs) else self.target_probs
        self.check_stream_mixes(target, self.reference)
        names: Sequence[str] = stream.classes or ()
        kind = None
        if stream.several_labels:
            kind = LabelSets.expected(num_classes, self.class_names or names)
            names = complete_names(names, kind)
        controller = self._make_controller(
            num_classes, target, names=names, label_sets=kind, batch_size=stream.batch_size
        )
        if kind is not None:
            controller.expect_several_labels(kind)
        return controller

    @staticmethod
    def check_stream_mixes(*mixes: Target | Shift) -> None:
        """Refuse mixes for a stream that are computed from the class counts of the data."""
        if _is_from_data(*mixes):
            raise ValueError(
                "A stream has no prior: its class mix is not known. Set target_probs and reference to probabilities or "
                "'uniform'."
            )

    def _make_controller(
        self,
        num_classes: int,
        target: Target | Shift,
        class_counts: ArrayLike | None = None,
        names: Sequence[str] = (),
        values: Sequence[Any] | None = None,
        label_sets: LabelSets | None = None,
        *,
        batch_size: int,
    ) -> FeedbackController:
        own_names = complete_names(self.class_names, label_sets) if self.class_names else None
        check_number_of_names(own_names, num_classes)
        if label_sets is not None:
            self.check_several_labels(label_sets)
        settings = {name: getattr(self, name) for name in (*_LAW, *_OBJECTIVE)}
        # A target may use any of the names, and the values of the labels; those of the settings come first.
        vocabularies, counts = (names, values or (), own_names or ()), Counter(names)
        numbers = {word: number for words in vocabularies for number, word in enumerate(words)}
        numbers = {word: number for word, number in numbers.items() if counts[word] < 2}  # the name of one class
        return FeedbackController(
            num_classes,
            number_target(target, numbers),
            reference=number_target(self.reference, numbers, "reference"),  # type: ignore[arg-type]
            feedback="train" if self.feedback == "train" else "validation",
            class_counts=class_counts if label_sets is None else None,
            label_sets=label_sets
            if label_sets is not None and label_sets.size
            else None,  # those of a stream come later
            class_names=next((each for each in (own_names, names) if len(set(each or ())) == num_classes), None),
            batch_size=batch_size,
            **settings,
        )

    def check_several_labels(self, labels: LabelSets) -> None:
        """Refuse settings that are for one class a sample."""
        if labels.has_unlabeled and self._vector_length == labels.num_classes - 1:
            raise ValueError(
                f"target_probs must have one entry per class, and one for samples without a label, the last of "
                f"{labels.num_classes}; got {self._vector_length}."
            )
        if self.correction == "logits":
            by_preset = "" if self.preset == "balanced" else f" of preset={self.preset!r}"
            other = ", or correction='none'" if self.feedback_to == "draw" else ""
            raise ValueError(
                f"correction='logits'{by_preset} is for one class a sample: if samples have several labels, no offset "
                f"of the logits corrects the draw. Set correction='weights'{other}."
            )

    @property
    def _known_num_classes(self) -> int | None:
        """Number of classes according to the settings alone."""
        return self.num_classes or self._vector_length

    @property
    def _vector_length(self) -> int | None:
        """Length of a target that is a vector; None if it is none."""
        ends = target_endpoints(self.target_probs)
        vectors = (end for end in ends if not isinstance(end, (str, Mapping, NoneType)))
        return next((len(end) for end in vectors), None)  # type: ignore[arg-type]

    def _check_law(self) -> None:
        """Check the law as far as the number of classes and the target are known without the data."""
        for end in target_endpoints(self.target_probs):
            _check_mix("target_probs", end, *TRAINING_TARGETS)
        _check_mix("reference", self.reference)
        alpha, K, horizon = as_schedule(self.alpha), self._known_num_classes, self.horizon
        check_min_prob(self.min_prob, K or 1)
        if len(self.class_names or ()) + 1 != K:  # that of samples without a label can be left out
            check_number_of_names(self.class_names, K)
        # A name stands for a target of any length. The names of classes may be those of the data.
        ends = [end for end in target_endpoints(self.target_probs) if isinstance(end, str) or (K and not _names(end))]
        ends = [end for end in ends if not (isinstance(end, str) and end in TRAINING_TARGETS)]
        mixes = [resolve_target(end, K or 1, np.ones(K or 1)) for end in ends]
        min_target = min((float(mix[mix > 0].min()) for mix in mixes), default=1.0)
        if horizon is not None:  # else the default, and with it the largest stable alpha, depend on the batch size
            lambda2 = self.lambda2 if self.feedback_to == "draw" else 0.0
            law.check_gain(max(alpha.extremes), self.lambda1, lambda2, horizon, min_target)


def _have_same_pairs(old: Any, new: LabelSets) -> bool:
    """Return whether the same labels come together, so that the same draws bring a target."""
    return isinstance(old, LabelSets) and np.array_equal(old.cooccurrence(), new.cooccurrence())


def _check_mix(name: str, mix: Any, *words: str) -> None:
    """Refuse a mix that is no name, vector or mapping; the classes of a mapping may be named by the data."""
    check_kind(name, mix, *words)
    if isinstance(mix, Mapping):
        for key, share in mix.items():
            check_number(f"{name}[{show(key)}]", share, "[0, inf)")
    elif mix is not None and not isinstance(mix, str):
        check_mix(mix, len(mix), name)


def _is_from_data(*targets: Target | Shift) -> bool:
    """Return whether a target needs the class counts of the data."""
    mixes = [end for target in targets for end in target_endpoints(target)]
    return any(isinstance(mix, str) and mix not in ("uniform", "target") for mix in mixes)


def _names(target: Target) -> list[str]:
    return [key for key in target if isinstance(key, str)] if isinstance(target, Mapping) else []


# So that `torch.load(weights_only=True)` reads a checkpoint with settings among its hyperparameters.
torch.serialization.add_safe_globals([FairSettings, UnsavedLabels])
