"""Every argument of every public constructor, function and method, with values that it does not take."""

import inspect
import math
import re
from fractions import Fraction
from types import SimpleNamespace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

import lightning_fair
from lightning_fair import (
    FairDataModule,
    FairRotation,
    FairSampling,
    FairStream,
    FeedbackBatchSampler,
    FeedbackController,
    ImportanceWeightedMixin,
    RandomStates,
    effective_sample_size,
    importance_weights,
    logit_adjustment,
    schedules,
)
from lightning_fair.common.checks import LARGEST_NUM_CLASSES, show
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.label_values import number_labels
from lightning_fair.common.labels import find_labels
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.validation_feedback import ValidationFeedback
from lightning_fair.monitoring.class_metrics import find_class_values
from lightning_fair.schedules import Constant, Cosine, Join, Linear, Shift, Step

LABELS = [0, 1, 1, 2]
DATA = TensorDataset(torch.zeros(4, 1), torch.tensor(LABELS))
SETS = LabelSets.from_lists([[0], [0, 1], [2]], 3)
MIX = [0.5, 0.25, 0.25]


class Classifier(ImportanceWeightedMixin, L.LightningModule):
    pass


class ValuedClassifier(Classifier):
    """A module in a validation of a fit with three classes."""

    def __init__(self):
        super().__init__()
        source = SimpleNamespace(controller=FeedbackController(3, feedback="validation"))
        feedback = object.__new__(ValidationFeedback)
        feedback._run, feedback._name, feedback._metrics_before = (
            SimpleNamespace(source=source, noun="class"),
            "val",
            {},
        )
        feedback._given, feedback._has_counts = [], False
        callback = FairSampling()
        callback._run.validation_feedback = feedback
        self._trainer = SimpleNamespace(callbacks=[callback], datamodule=None)


def with_batch_in_flight(sampler):
    next(iter(sampler))
    return sampler


def set_fair_sampling(fair_sampling):
    module = Classifier()
    module.fair_sampling = fair_sampling
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return module.configure_callbacks()


# -- values of each kind -------------------------------------------------------------------------------

NONE = (None,)
HUGE = 10**400
META = torch.zeros(3, device="meta")
OTHERS = ("3", "x", b"3", [1], {}, {"a": 1}, 1j, True, np.ones(2), torch.ones(2), META, object)
NUMBER = (*OTHERS, math.nan, -math.inf, HUGE, -HUGE)
INTEGER = (*OTHERS, 1.5, math.nan, math.inf, -HUGE, np.float64(2.0))
COUNT = (*INTEGER, 0, -1, 2**40, HUGE)  # of at least 1
FLAG = ("yes", "True", 1, 0, 1.5, [], 1j, np.ones(2), torch.ones(2), object)
CHOICE = ("x", "", b"draw", 3, True, 1j, [], ["draw"], {}, np.ones(2), torch.ones(2), object)
VECTOR = (
    "x",
    {"a": 1},
    3,
    1.5,
    1j,
    object,
    ["a", "b", "c"],
    [None, 0.5, 0.5],
    [1j, 0, 0],
    [[0.5], 0.5],
    META,
    [HUGE] * 3,
)
MIX_VALUES = (*VECTOR[:1], *VECTOR[2:], [], {}, True, -1, math.nan, [0.5] * 3, [math.nan, 0.5, 0.5], [-0.5, 1.0, 0.5])
MIX_VALUES += ({0: "a"}, {0: None}, {0: math.nan}, [[0.5, 0.5]], torch.tensor(0.5), np.array(0.5), "Uniform", b"prior")
LABEL_VALUES = (
    3,
    1.5,
    1j,
    object,
    "ab",
    {"a": 1},
    {1, 2},
    [1.5, 0],
    [-1, 0],
    [1j, 0],
    [[0, 1], [1, 2]],
    [[0], [-1, 2]],
    META,
)
TEXT = (3, 1.5, 1j, True, [], {}, b"x", object, np.ones(2))
NAMES = ("ab", b"ab", 3, 1.5, True, {"a": 0}, {"a"}, [], torch.ones(2), object, ["a", "a"])
TENSOR = ([1.0, 2.0], (1.0,), np.ones(2), 1.5, "x", None, torch.ones(2, dtype=torch.int64), {}, object)
DATA_SET = (3, 1.5, "ab", b"ab", {"a": 1}, object(), True)
SCHEDULE_TIME = (*OTHERS, math.nan, math.inf, -1, HUGE)


ENDS = ([0.5] * 3, [math.nan, 0.5, 0.5], [-0.5, 1.0, 0.5], ["a", "b", "c"], [1j, 0, 0], {0: "a"}, {0: math.nan}, META)
ENDS = tuple(Shift(Step(0.0, 1.0, at=5), end=end) for end in ENDS)  # targets that move


# -- every argument ------------------------------------------------------------------------------------

OF_LAW = {
    "alpha": (*NUMBER, *NONE, -1, math.inf, lambda step: 8.0),
    "lambda1": (*NUMBER, *NONE, -1, math.inf),
    "lambda2": (*NUMBER, -1, math.inf),
    "max_weight": (*NUMBER, *NONE, 0.5, 0, -1),
    "horizon": (*NUMBER, 0, 0.5, math.inf),
    "loss_ema_decay": (*NUMBER, *NONE, -0.1, 1, 1.5),
    "min_prob": (*NUMBER, *NONE, -0.1, 1, 0.4),
    "feedback_to": CHOICE,
    "feedback_gain": (*NUMBER, *NONE, -1, math.inf),
    "num_classes": (*COUNT, LARGEST_NUM_CLASSES + 1),
    "feedback_delay": COUNT,
}
OF_RAMP = {
    "start": (*NUMBER, *NONE, math.inf),
    "end": (*NUMBER, *NONE, math.inf),
    "duration": (*SCHEDULE_TIME, *NONE, 0),
    "begin": (*SCHEDULE_TIME, *NONE),
    "unit": (*CHOICE, *NONE),
}
# The callable, arguments that it takes, and bad values of each of its arguments.
TABLE = {
    "FeedbackController": (
        FeedbackController,
        {"num_classes": 3, "class_counts": [2, 1, 1]},
        {
            **OF_LAW,
            "num_classes": (*OF_LAW["num_classes"], *NONE),
            "lambda2": (*OF_LAW["lambda2"], *NONE),
            "feedback_to": (*CHOICE, *NONE),
            "feedback_delay": (*COUNT, *NONE),
            "target_probs": (
                *MIX_VALUES,
                *ENDS,
                "target",
                "auto",
                {9: 0.5},
                {"cat": 0.5},
                {1.5: 0.5},
                [1.0],
            ),
            "reference": (*MIX_VALUES, "auto", {9: 0.5}, [1.0]),
            "feedback": (*CHOICE, *NONE),
            "class_counts": (*VECTOR, [-1, 1, 1], [math.nan, 1, 1], [1, 1]),
            "label_sets": (*LABEL_VALUES, LABELS),
            "class_names": NAMES,
            "batch_size": (*COUNT, *NONE),
        },
    ),
    "FeedbackController.bind_batch": (
        FeedbackController(3).bind_batch,
        {"batch_size": 4},
        {"batch_size": (*COUNT, *NONE), "steps_per_epoch": COUNT},
    ),
    "FeedbackController.step_update": (
        FeedbackController(3).step_update,
        {"labels": [0, 1]},
        {"labels": (*LABEL_VALUES, *NONE, [0, 3], [0, 2**40], [0, HUGE]), "losses": (*VECTOR, True, [1.0])},
    ),
    "FeedbackController.report_validation": (
        FeedbackController(3, feedback="validation").report_validation,
        {"values": MIX},
        {
            "values": (*VECTOR, *NONE, [2, 0, 0], [-1, 0, 0]),
            "counts": (*VECTOR, [-1, 1, 1]),
            "higher_is_better": (*FLAG, *NONE),
        },
    ),
    "FeedbackController.target_at": (
        FeedbackController(3).target_at,
        {"progress": 0},
        {"progress": (*NUMBER, *NONE, -1, 1.5)},
    ),
    "FeedbackController.rest_at": (
        FeedbackController(3).rest_at,
        {"progress": 0},
        {"progress": (*NUMBER, *NONE, -1, 1.5)},
    ),
    "FeedbackBatchSampler": (
        FeedbackBatchSampler,
        {"labels": LABELS, "batch_size": 2, "world_size": 1},
        {
            "labels": (*LABEL_VALUES, *NONE, object()),
            "batch_size": (*COUNT, *NONE),
            "steps_per_epoch": COUNT,
            "controller": ("x", 3, FeedbackController, [], {}, FairSampling()),
            "seed": (*INTEGER, *NONE, -1),
            "rank": (*INTEGER, *NONE, -1, 1, 2**40),
            "world_size": COUNT,
            "empty_classes": (*CHOICE, *NONE),
        },
    ),
    "FeedbackBatchSampler.set_epoch": (
        FeedbackBatchSampler(LABELS, 2).set_epoch,
        {"epoch": 0},
        {"epoch": (*INTEGER, *NONE, -1)},
    ),
    "FeedbackBatchSampler.sample_weights": (
        with_batch_in_flight(FeedbackBatchSampler(SETS, 2)).sample_weights,
        {"labels": [[1, 0, 0], [1, 1, 0]]},
        {"labels": (*LABEL_VALUES, *NONE, LABELS, [[1, 0], [1, 1]], [[0, 0, 0]], [[2, 0, 0]])},
    ),
    "FairStream": (
        FairStream,
        {"source": [(0.0, 0)], "batch_size": 4},
        {
            "source": (*DATA_SET, None),
            "controller": ("x", 3, [], FeedbackController),
            "batch_size": (*COUNT, *NONE),
            "buffer_size": (*COUNT, *NONE),
            "max_reuse": (*COUNT, *NONE),
            "reads_per_sample": (*COUNT, *NONE),
            "label_fn": ("x", 3, [], {}, True),
            "class_names": NAMES,
            "several_labels": (*FLAG, *NONE),
            "return_weights": (*FLAG, *NONE),
            "save_buffers": (*FLAG, *NONE),
            "seed": (*INTEGER, *NONE, -1),
        },
    ),
    "FairStream.bind": (
        FairStream([(0.0, 0)], batch_size=4).bind,
        {"controller": FeedbackController(3)},
        {"controller": ("x", 3, None, FeedbackController)},
    ),
    "FairStream.set_epoch": (
        FairStream([(0.0, 0)], FeedbackController(3), batch_size=4).set_epoch,
        {"epoch": 0},
        {"epoch": (*INTEGER, *NONE, -1)},
    ),
    "FairStream.step_update": (
        FairStream([(0.0, 0)], FeedbackController(3), batch_size=4).step_update,
        {"labels": [0, 1]},
        {"labels": (*LABEL_VALUES, *NONE, [0, 3]), "losses": VECTOR},
    ),
    "FairSampling": (
        FairSampling,
        {},
        {
            **OF_LAW,
            "min_prob": (*NUMBER, *NONE, -0.1, 1),
            "target_probs": (*MIX_VALUES, *ENDS, "target"),
            "preset": (*CHOICE, *NONE),
            "reference": (*MIX_VALUES, "auto"),
            "correction": CHOICE,
            "logits": (*TEXT, ""),
            "feedback": (*TEXT, ""),
            "feedback_mode": CHOICE,
            "max_repeats": (*NUMBER, *NONE, 0.5),
            "normalize": (*FLAG, *NONE),
            "exponent": (*NUMBER, *NONE, -0.1, 1.5),
            "labels": (1.5, 1j, True, b"ab", "", {}, {"a": 1}, {1, 2}, math.nan),
            "class_names": NAMES,
            "dataloader": (1.5, 1j, True, [], {}, b"a", math.nan, object),
            "steps_per_epoch": COUNT,
            "empty_classes": (*CHOICE, *NONE),
            "seed": (*INTEGER, -1),
            "resume": (*CHOICE, *NONE),
        },
    ),
    "FairDataModule": (
        FairDataModule,
        {"data": DATA, "batch_size": 2},
        {
            "data": (*DATA_SET, None, DataLoader(DATA), FairDataModule(DATA, batch_size=2)),
            "fair": ("x", 3, True, FairSampling, {}, FeedbackController(3)),
            "batch_size": COUNT,
            "val": (*DATA_SET, DataLoader(DATA)),
            "test": (*DATA_SET, DataLoader(DATA)),
        },
    ),
    "RandomStates": (RandomStates, {}, {}),
    "ImportanceWeightedMixin": (
        set_fair_sampling,
        {"fair_sampling": True},
        {"fair_sampling": ("x", 3, {}, FairSampling)},
    ),
    "ImportanceWeightedMixin.weighted_loss": (
        Classifier().weighted_loss,
        {"losses": torch.ones(2)},
        {"losses": TENSOR, "labels": ("x", 3, [0, 1], np.zeros(2, int))},
    ),
    "ImportanceWeightedMixin.adjusted_logits": (
        Classifier().adjusted_logits,
        {"logits": torch.ones(2, 3)},
        {"logits": TENSOR, "labels": ("x", 3, [0, 1], np.zeros(2, int))},
    ),
    "ImportanceWeightedMixin.fair_feedback": (
        lambda **arguments: ValuedClassifier().fair_feedback(**arguments),
        {"values": MIX},
        {"values": (*VECTOR, *NONE, [0.5]), "counts": (*VECTOR, [-1, 1, 1], [math.nan, 1, 1], [1])},
    ),
    "effective_sample_size": (
        effective_sample_size,
        {"weights": [1.0]},
        {"weights": (*VECTOR, *NONE, "a", True, [-1.0], [math.nan], [math.inf], [[1.0]])},
    ),
    "importance_weights": (
        importance_weights,
        {"labels": [0, 1], "q": MIX, "p": MIX},
        {
            "labels": (*LABEL_VALUES, *NONE, [0, 3], [0, 2**40], [0, 2**70], np.array([0, 2**63 + 5], np.uint64)),
            "q": (*VECTOR, *NONE, [1.0], [math.nan, 0.5, 0.5], [-0.5, 1.0, 0.5]),
            "p": (*VECTOR, *NONE, [1.0], [math.nan, 0.5, 0.5], [-0.5, 1.0, 0.5]),
            "max_w": (*NUMBER, "a", 0, -1),
            "normalize": (*FLAG, *NONE),
            "exponent": (*NUMBER, *NONE, -0.1, 1.5),
        },
    ),
    "logit_adjustment": (
        logit_adjustment,
        {"p": MIX, "ref": MIX},
        {"p": (*VECTOR, *NONE, [1.0], [-0.5, 1.0, 0.5]), "ref": (*VECTOR, *NONE, [1.0], [math.inf, 0.5, 0.5])},
    ),
    "FairRotation": (
        FairRotation,
        {"n": 5, "k": 2},
        {"n": (*COUNT, *NONE), "k": (*COUNT, *NONE), "start": (*INTEGER, *NONE, HUGE), "seed": (*INTEGER, -1)},
    ),
    "FairRotation.resize": (FairRotation(5, 2).resize, {}, {"n": COUNT, "k": COUNT, "start": (*INTEGER, HUGE)}),
    "FairRotation.next_batch": (FairRotation(5, 2).next_batch, {}, {"warn": (*FLAG, *NONE)}),
    "FairRotation.load_counts": (
        FairRotation(5, 2).load_counts,
        {"counts": {}},
        {"counts": (3, 1.5, None, [1], True, b"{}", {"a": 1}, {1: "a"}, {1: -1}, {1: HUGE}, {1.5: 1}, {1: None}, "[]")},
    ),
    "FairRotation.to_json": (FairRotation(5, 2).to_json, {}, {"counts_only": (*FLAG, *NONE)}),
    "FairRotation.from_json": (
        FairRotation.from_json,
        {"text": FairRotation(5, 2).to_json()},
        {"text": (3, None, b"{}", [], {}, "[]", '{"1": 2}'), "seed": (*INTEGER, -1)},
    ),
    "find_labels": (
        find_labels,
        {"dataset": DATA},
        {
            "dataset": (*DATA_SET, None, [1, 2]),
            "labels": (1.5, 1j, True, b"ab", "nowhere", "", -9, HUGE, {"a": 1}, [0, 1], [0, 1, 2, 1.5], object()),
            "num_classes": COUNT,
        },
    ),
    "number_labels": (
        number_labels,
        {"values": LABELS},
        {
            "values": (*LABEL_VALUES, *NONE, [{}], [None, 1], math.nan, [math.inf]),
            "num_classes": COUNT,
            "num_named": (*INTEGER, *NONE, -1),
        },
    ),
    "find_class_values": (
        find_class_values,
        {"metrics": {"recall/a": 0.5}, "name": "recall", "class_names": ["a", "b"]},
        {"metrics": ("x", 3, None, [1]), "name": (*TEXT, *NONE), "class_names": (*NAMES[:-1], None)},
    ),
    "schedules.Constant": (Constant, {"value": 1.0}, {"value": (*NUMBER, *NONE, math.inf)}),
    "schedules.Linear": (Linear, {"start": 0.0, "end": 1.0, "duration": 5}, OF_RAMP),
    "schedules.Cosine": (Cosine, {"start": 0.0, "end": 1.0, "duration": 5}, OF_RAMP),
    "schedules.Step": (
        Step,
        {"before": 0.0, "after": 1.0, "at": 5},
        {"before": OF_RAMP["start"], "after": OF_RAMP["end"], "at": OF_RAMP["begin"], "unit": (*CHOICE, *NONE)},
    ),
    "schedules.Join": (
        Join,
        {"schedules": [Constant(1.0)] * 3, "boundaries": [5, 9]},
        {
            "schedules": ([1, 2, 3], "abc", 3, None, [Constant(1.0)], [Constant(1.0), None, "x"], {}, Constant(1.0)),
            "boundaries": (
                3,
                None,
                "ab",
                [5],
                [5, "a"],
                [5, None],
                [9, 5],
                [5, math.nan],
                [-1, 5],
                [5, math.inf],
                [True, 5],
            ),
            "unit": (*CHOICE, *NONE),
        },
    ),
    "schedules.Shift": (
        Shift,
        {"progress": Step(0.0, 1.0, at=5)},
        {
            "progress": (0.5, "x", None, True, [Constant(1.0)], lambda step: 0.5, Constant(2.0), Step(0.0, -1.0, at=5)),
            "start": (3, 1.5, 1j, True, object, [], "x", b"prior", Shift(Constant(1.0))),
            "end": (3, 1.5, 1j, True, object, [], "x", b"prior", Shift(Constant(1.0))),
        },
    ),
}
# Methods that the package alone calls, with values of its own, and those that load a state, which have tests of theirs.
INTERNAL = {
    "FeedbackController": {"next_probs", "record_draw", "rewind", "report", "skip_classes", "load_state_dict"},
    "FeedbackBatchSampler": {
        "deliver",
        "report",
        "clip_counts",
        "start_iteration",
        "withdraw",
        "restore",
        "check_state",
        "weights_at",
    },
    "FairStream": {"batches", "begin", "load_state_dict"},
    "FairSampling": {"is_installed_in"},
    "schedules.Schedule": {"value_at"},
}
OF_LIGHTNING = (L.Callback, L.LightningDataModule, L.LightningModule)


def public_callables():
    """Yield the name of each public callable, and the names of its arguments."""
    classes = {name: getattr(lightning_fair, name) for name in lightning_fair.__all__ if name != "schedules"}
    for name, member in vars(schedules).items():
        if inspect.isclass(member) and member.__module__ == schedules.__name__ and not name.startswith("_"):
            classes[f"schedules.{name}"] = member
    classes |= {f.__name__: f for f in (find_labels, number_labels, find_class_values)}
    for name, member in classes.items():
        if name == "ImportanceWeightedMixin":
            yield name, {"fair_sampling"}  # an attribute of the class
        elif name != "schedules.Schedule":
            yield name, arguments_of(member)
        for method, function in vars(member).items() if inspect.isclass(member) else ():
            known = method in INTERNAL.get(name, ()) or any(hasattr(kind, method) for kind in OF_LIGHTNING)
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not method.startswith("_") and not known and arguments_of(function):
                yield f"{name}.{method}", arguments_of(function)


def arguments_of(function):
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters.values()
    return {each.name for each in parameters if each.kind not in kinds} - {"self", "cls"}


def test_table_has_every_argument():
    """The table has every argument of every public callable; those of torch's loader are torch's."""
    assert {name: set(bad) for name, (_, _, bad) in TABLE.items()} == dict(public_callables())


def test_good_arguments_are_taken():
    for call, good, _ in TABLE.values():
        call(**good)


# Words for an argument other than its name, and words that stand for a value whose own form would not help.
ALIASES = {
    "values": ("labels",),
    "counts": ("number", "JSON"),
    "text": ("JSON", "saved rotation"),
    "dataset": ("data set",),
    "schedules": ("Join",),
}
SHOWN = r"shape|sum|got \d+ (for|schedules)|extremes of progress|lists of different lengths|samples have none"
SHOWN += r"|a mapping|a Fair|complex numbers|data set is of type|counts alone"
SHOWN += r"|got a (set|DataLoader)|unhashable type|such as|got 'a'"


def fault(call, arguments, name):
    """Return what is wrong with the refusal of a value, or None."""
    value = arguments[name]
    try:
        call(**arguments)
    except (TypeError, ValueError) as error:
        message = str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "accepted"
    is_named = any(word.lower() in message.lower() for word in (name, *ALIASES.get(name, ())))
    is_shown = any(show(part) in message for part in parts_of(value)) or re.search(SHOWN, message)
    is_short = len(message) <= 300 and "\n" not in message and message.endswith((".", ")"))
    return None if is_named and is_shown and is_short else message


def parts_of(value):
    """Yield a value and what is in it."""
    yield value
    inner = [value.start, value.end] if isinstance(value, Shift) else []
    inner += [*value, *value.values()] if isinstance(value, dict) else []
    inner += value if isinstance(value, list) else value.tolist() if isinstance(value, np.ndarray) else []
    for part in inner:
        yield from parts_of(part)


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name, (_, _, bad) in TABLE.items() for each in bad])
@pytest.mark.filterwarnings("ignore")
def test_bad_value_is_refused(name, argument):
    """One sentence has the name of the argument, and a short form of the value or of its part."""
    call, good, bad = TABLE[name]
    faults = {show(value): fault(call, {**good, argument: value}, argument) for value in bad[argument]}
    assert {value: words for value, words in faults.items() if words is not None} == {}


@pytest.mark.parametrize("labels", [[2**40, 1, 1], np.array([2**63 + 5, 1], np.uint64)])
def test_labels_beyond_every_number_of_classes(labels):
    """They are refused before memory for so many classes is asked for; without a number of classes they are names."""
    with pytest.raises(ValueError, match=rf"labels must lie in \[0, 5\), got {max(labels)}\. Leave num_classes out"):
        FairSettings(num_classes=5).make_sampler(labels, 2)
    assert FairSettings().make_sampler(labels, 2).controller.num_classes == 2


# -- unusual values that are taken ---------------------------------------------------------------------

CONFIG = OmegaConf.create(
    {"number": 2.5, "whole": 3, "flag": True, "mix": MIX, "shares": {0: 0.5}, "names": ["a", "b", "c"]}
)
NUMBERS = (
    2,
    np.float32(2.5),
    np.int64(2),
    np.array(2.5),
    torch.tensor(2.5),
    torch.tensor(2),
    Fraction(5, 2),
    CONFIG.number,
)
WHOLE = (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), CONFIG.whole)
FLAGS = (True, np.True_, torch.tensor(False), CONFIG.flag)
MIXES = (
    *(np.array(MIX), tuple(MIX), torch.tensor(MIX), torch.tensor(MIX, dtype=torch.bfloat16), np.array(MIX, np.float16)),
    *(torch.tensor(MIX, requires_grad=True), [Fraction(1, 2), 0.25, 0.25], [torch.tensor(each) for each in MIX]),
    *([1, 0, 0], CONFIG.mix),
)
TARGETS = (
    *MIXES,
    CONFIG.shares,
    {0: np.float32(0.5), np.int64(2): 0.25},
    {0: 1},
    "sqrt",
    None,
    Shift(Linear(0, 1, 5), MIX),
)
CLASSES = (np.array([0, 1], np.uint8), torch.tensor([0, 1]), (0, 1), torch.tensor([0, 1], dtype=torch.int16), [])
GOOD = {
    "FeedbackController": {
        "num_classes": WHOLE,
        "alpha": (*NUMBERS, Linear(np.float32(0), torch.tensor(8.0), np.int64(5))),
        "lambda1": NUMBERS,
        "horizon": (*(16 + number for number in NUMBERS), None),
        "max_weight": (*NUMBERS, math.inf, 10**300),
        "min_prob": (0, np.float32(0.25), torch.tensor(0.1)),
        "loss_ema_decay": (0, np.float64(0.5)),
        "target_probs": TARGETS,
        "reference": MIXES[:-2],
        "class_counts": ([3, 2, 1], np.array([3, 2, 1]), torch.tensor([3, 2, 1]), [0, 2.5, 1]),
        "batch_size": WHOLE,
    },
    "FeedbackController.step_update": {
        "labels": CLASSES[:-1],
        "losses": ([1, math.nan], torch.ones(2).half(), np.ones(2, int)),
    },
    "FeedbackController.report_validation": {"values": (*MIXES, [math.nan, 0.5, 1]), "higher_is_better": FLAGS},
    "FeedbackBatchSampler": {
        "labels": (
            ["a", "b", "a"],
            [7, 2**40, 7],
            [2**70, 1, 1],
            np.array([2**63 + 5, 1], np.uint64),
            [True, False],
            range(3),
        ),
        "batch_size": WHOLE,
        "seed": (*WHOLE, 2**70, HUGE),
        "steps_per_epoch": (*WHOLE, None),
    },
    "FairSampling": {
        "alpha": NUMBERS,
        "target_probs": (*TARGETS, "auto", {"cat": 0.5, "dog": 0.5}),
        "reference": (*TARGETS[:-1], "target"),
        "num_classes": WHOLE,
        "class_names": (("a", "b"), np.array(["a", "b"]), CONFIG.names, [0, 1], iter("ab")),
        "max_repeats": (*NUMBERS, math.inf),
        "normalize": FLAGS,
        "dataloader": (0, -1, "labeled", None, np.int64(1)),
        "labels": ([0, 1], "kind", -1, np.int64(2), len, torch.tensor([0, 1]), np.array(["a", "b"]), range(4), None),
        "seed": (*WHOLE, 0, 2**64),
    },
    "FairDataModule": {"batch_size": WHOLE, "val": (None, DATA, [(0.0, 0)]), "data": ([(0.0, 0), (1.0, 1)],)},
    "importance_weights": {"labels": CLASSES, "q": MIXES, "max_w": (*NUMBERS, math.inf, None), "normalize": FLAGS},
    "logit_adjustment": {"p": MIXES, "ref": MIXES},
    "effective_sample_size": {"weights": (*MIXES, [], [True, False])},
    "schedules.Linear": {"start": NUMBERS, "duration": NUMBERS},
    "schedules.Join": {"boundaries": ((5, 9), np.array([5, 9]), torch.tensor([5, 9]), [0, np.int64(9)])},
    "FairRotation": {"n": WHOLE, "seed": (*WHOLE, None)},
    "find_labels": {"num_classes": WHOLE, "labels": (1, lambda data: data.tensors[1], ["a", "b", "b", "c"])},
    "number_labels": {"values": ([[0, 1], [1, 1]], [[0], [1, 2]], [{"a"}, set()], torch.ones(2, 3).to_sparse())},
}


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name, good in GOOD.items() for each in good])
@pytest.mark.filterwarnings("ignore")
def test_unusual_value_is_taken(name, argument):
    """Numbers of NumPy, torch and OmegaConf work like Python's."""
    call, others, _ = TABLE[name]
    for value in GOOD[name][argument]:
        call(**{**others, argument: value})


@pytest.mark.parametrize("value", [2, np.float32(2), np.array(2.0), torch.tensor(2.0)])
def test_numbers_are_kept_as_plain_ones(value):
    settings, controller = (
        FairSampling(lambda1=value, num_classes=np.int64(3)).settings,
        FeedbackController(3, lambda1=value),
    )
    assert {type(settings.lambda1), type(controller.lambda1), type(Constant(value).value)} <= {float, int}
    assert type(settings.num_classes) is int
    assert settings.lambda1 == controller.lambda1 == Constant(value)(0, 0) == 2.0


@pytest.mark.parametrize("value", [np.int64(2), torch.tensor(2)])
def test_whole_numbers_reach_their_users(value):
    """A batch size goes to torch's loader, and a position to the look-up of labels."""
    dataset = TensorDataset(torch.zeros(4, 1), torch.arange(4) % 2)
    data = FairDataModule(dataset, batch_size=value)
    assert len(next(iter(data.train_dataloader()))[0]) == 2
    assert find_labels(dataset, np.int64(1)).numbers.tolist() == [0, 1, 0, 1]


def test_names_from_a_mapping():
    """Its keys and values are in order; a set is not."""
    names = {"a": 0, "b": 1}
    assert list(FairSampling(class_names=names.keys()).settings.class_names) == ["a", "b"]
    with pytest.raises(TypeError, match="class_names must be a list"):
        FairSampling(class_names=set(names))
