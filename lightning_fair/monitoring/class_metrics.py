"""Metrics of each class among the logged metrics: their names, and whether higher values are better."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from lightning_fair.common.arrays import Floats, to_numpy
from lightning_fair.common.checks import check_names, check_type

Mode: TypeAlias = Literal["max", "min"]

_BEFORE, _AFTER = r"(?:multiclass|multilabel|binary|val|log|top\d+)?", r"(?:s|es|score|index)?"
_HIGHER = r"recall|sensitivity|specificity|tpr|tnr|acc|accuracy|precision|ap|f[12]|fbeta|auroc|auc|iou|jaccard|dice"
_LOWER = r"loss|nll|error|err|fpr|fnr|ce|entropy|crossentropy|xent|brier|ece|hinge|perplexity|mse|mae|rmse"
_WORDS: dict[Mode, re.Pattern[str]] = {
    "max": re.compile(f"{_BEFORE}(?:{_HIGHER}){_AFTER}", re.IGNORECASE),
    "min": re.compile(f"{_BEFORE}(?:{_LOWER}){_AFTER}", re.IGNORECASE),
}
_LOADER = re.compile(r"/dataloader_idx_(\d+)$")  # Lightning adds it if there are several validation loaders
_SEPARATORS = "/_-.: "  # characters between the name of a metric and that of a class


class ClassValues(NamedTuple):
    """The values of a metric that was logged for each class.

    Attributes:
        values: Value of each class that has one, by the number of the class.
        by_number: Whether the names of the metrics have the numbers of the classes.
        loader: Number of the validation loader that Lightning added to the names; None without one.
    """

    values: dict[int, float]
    by_number: bool = False
    loader: int | None = None


def feedback_mode(feedback: str, mode: Mode | None) -> Mode | None:
    """Return whether higher (``"max"``) or lower values of a metric that is fed back are better; None for losses.

    Args:
        feedback: Name of the metric, or ``"train"`` for the losses of the training.
        mode: The direction as it is stated. None: known by name.

    Raises:
        ValueError: If the name tells nothing and ``mode`` is None, or if ``mode`` is stated for ``"train"``.
    """
    if feedback == "train":
        if mode is not None:
            raise ValueError(
                f"feedback_mode={mode!r} is for a metric, and feedback='train' feeds back losses. Leave it out, or "
                "name the metric: feedback='val/recall'."
            )
        return None
    mode = mode or mode_of(feedback)
    if mode is None:
        raise ValueError(
            f"The name of the metric feedback={feedback!r} does not tell whether higher values are better. Set "
            "feedback_mode='max', for example for a recall, or feedback_mode='min', for a loss."
        )
    return mode


def mode_of(name: str) -> Mode | None:
    """Return ``"max"`` if higher values of a metric are better, ``"min"`` if lower ones are; None if unknown.

    The last known word of the name decides.

    Example:
        >>> mode_of("val/recall"), mode_of("multiclassf1score"), mode_of("val/dice_loss"), mode_of("val/score")
        ('max', 'max', 'min', None)
    """
    for token in reversed(re.split(r"[^A-Za-z0-9]+", _LOADER.sub("", name))):
        for word in (token, *reversed(re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", token))):  # valLoss is two words
            for mode, words in _WORDS.items():
                if words.fullmatch(word):
                    return mode
    return None


def find_class_values(metrics: Mapping[str, Any], name: str, class_names: Sequence[str]) -> ClassValues:
    """Return the values of a metric that is logged for each class; none if no class has one.

    Args:
        metrics: Metrics by name.
        name: Name of the metric. After it, and one of ``/``, ``_``, ``-``, ``.``, ``:`` and space, the name of each
            class follows, or its number. If the class is elsewhere in the name, ``*`` stands for it:
            ``"val/*_recall"``. ``"val/recall/dataloader_idx_1"`` is the metric of the second validation loader.
        class_names: Name of each class.

    Raises:
        ValueError: If several validation loaders have the metric and ``name`` chooses none, or if the names can be
            those of some classes as well as the numbers of others.

    Example:
        >>> find_class_values({"val/loss": 0.3, "val/recall/cat": 0.9}, "val/recall", ["dog", "cat"]).values
        {1: 0.9}
        >>> find_class_values({"multiclassrecall_1": 0.9}, "multiclassrecall", ["dog", "cat"]).values
        {1: 0.9}
    """
    check_type("metrics", metrics, Mapping, "a mapping from names to values")
    check_type("name", name, str, "the name of a metric")
    class_names = check_names("class_names", class_names)
    numbers = [str(label) for label in range(len(class_names))]
    # Of each group, the values by the names of the classes and by their numbers.
    pairs: dict[int | None, list[tuple[dict[int, float], dict[int, float]]]] = defaultdict(list)
    for (loader, _), words in _group_by_separator(metrics, name).items():
        pair = _look_up(class_names, words), _look_up(numbers, words)
        if any(pair):
            pairs[loader].append(pair)
    if len(pairs) > 1 and None not in pairs:
        choices = " or ".join(f"{name}/dataloader_idx_{loader}" for loader in pairs)
        raise ValueError(f"Several validation loaders have the metric {name!r}. Choose {choices}.")
    loader = None if None in pairs else next(iter(pairs), None)
    by_name, by_number = max(pairs[loader], key=lambda pair: max(map(len, pair)), default=({}, {}))
    if len(by_name) == len(by_number) and by_name != by_number:
        words_of_both = ", ".join(class_names[c] for c in by_name)
        raise ValueError(
            f"The metrics {name!r} have the words {words_of_both}, which are names of classes as well as numbers of "
            "other classes. Log a value for every class, NaN if it has none, or give the classes names that are no "
            "numbers: FairSampling(class_names=...)."
        )
    is_numbered = len(by_number) >= len(by_name)
    return ClassValues(by_number if is_numbered else by_name, is_numbered, loader)


def _look_up(names: Sequence[str], values: Mapping[str, float]) -> dict[int, float]:
    return {c: values[name] for c, name in enumerate(names) if name in values}


def find_recalls(metrics: Mapping[str, Any], class_names: Sequence[str], stage: str) -> Floats | None:
    """Return the recall of each class among the logged metrics, shape ``(K,)``; None if a class has none.

    Args:
        metrics: Metrics by name. The name of a recall has "recall" before a class's name or number, for example
            ``test/recall/cat`` or ``multiclassrecall_0`` (torchmetrics' ``ClasswiseWrapper``).
        class_names: Name of each class.
        stage: Preferred beginning of the names, for example ``"val"``. Names that begin with "train" are left out.

    Example:
        >>> find_recalls({"val/loss": 0.3, "val/recall/cat": 0.9, "val/recall/dog": 0.5}, ["cat", "dog"], "val")
        array([0.9, 0.5])
    """
    keys = [key for key in metrics if not key.startswith("train")]
    names = {key[: match.end()] for key in keys for match in re.finditer("recall", key, re.IGNORECASE)}
    for name in sorted(names, key=lambda name: (not name.startswith(stage), name)):
        with suppress(ValueError):
            values = find_class_values(metrics, name, class_names).values
            if len(values) == len(class_names):
                return np.array([values[c] for c in range(len(values))])
    return None


def _group_by_separator(metrics: Mapping[str, Any], name: str) -> dict[tuple[int | None, str], dict[str, float]]:
    """Return the values of the metrics called ``name``, by loader and separator, and then by the rest of the name."""
    chosen = _LOADER.search(name)
    before, star, after = _LOADER.sub("", name).partition("*")
    groups: dict[tuple[int | None, str], dict[str, float]] = defaultdict(dict)
    for key, value in metrics.items():
        suffix, plain = _LOADER.search(key), _LOADER.sub("", key)
        loader = None if suffix is None else int(suffix[1])
        if (chosen is not None and loader != int(chosen[1])) or np.prod(np.shape(value)) != 1:
            continue
        if match := re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", plain, re.DOTALL):
            rest = match[1]
            # The name of a class may begin with such characters.
            longest = len(rest) - len(rest.lstrip(_SEPARATORS))
            for width in [0] if star else range(1, longest + 1):
                groups[loader, rest[:width]][rest[width:]] = float(np.asarray(to_numpy(value)).item())
    return groups
