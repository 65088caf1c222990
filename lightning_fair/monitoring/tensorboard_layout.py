"""The charts of TensorBoard's tab Custom Scalars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MAX_NAMED_CLASSES = 20  # with more classes, quantiles over the classes are shown

Charts = dict[str, dict[str, Sequence[str]]]  # by category and title: the beginnings of the tags


class Moving(NamedTuple):
    """Which settings can change during the training. Those that cannot have no curves."""

    alpha: bool
    target: bool
    reference: bool


def plural(noun: str) -> str:
    """Return "classes" or "groups"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def make_charts(
    num_classes: int, moving: Moving, *, correction: str | None, arriving: bool, noun: str = "class"
) -> Charts:
    """Return the charts.

    Args:
        num_classes: Number of classes.
        moving: Which settings can change.
        correction: How the loss is corrected; None: not at all, and no losses are known.
        arriving: Whether the class mix that a stream reads is logged.
        noun: Word for a class; "label" if samples have several.
    """
    by_name, range_of = num_classes <= MAX_NAMED_CLASSES, "" if num_classes <= MAX_NAMED_CLASSES else ", least to most"
    mix, group = ("Trained mix", "trained_mix") if by_name else ("Trained mix over target", "over_target")
    band = "of the largest target" if by_name else "of the smallest target"
    charts: Charts = {
        "Is the mix where it should be?": {
            "Distance from the target; of independent draws": ("fair/distance", "fair_independent/distance"),
            **({f"Mix that arrives{range_of}": ("fair_class/arriving/",)} if arriving else {}),
            f"{mix}; band of independent draws {band}": (
                f"fair_class/{group}/",
                "fair_independent/low",
                "fair_independent/high",
            ),
            **({f"Target{range_of}": ("fair_class/target/",)} if moving.target else {}),
        },
        "How hard is it steered?": {
            "Largest deficit": ("fair/deficit_max",),
            "Distance of the draws from the target": ("fair/batch_distance",),
            **({"Labels of a sample": ("fair/labels_per_sample",)} if noun == "label" else {}),
            **({"Alpha": ("fair/alpha",)} if moving.alpha else {}),
        },
    }
    if moving.reference and correction in ("weights", "logits"):
        charts["What does the loss stand for?"] = {
            f"Mix that the loss stands for{range_of}": ("fair_class/reference/",)
        }
    if correction == "weights":
        charts["What do the weights cost?"] = {
            "Importance weights: mean, 95th percentile, largest": ("fair/weight_",),
            "Effective sample size: batch, last horizon, run": ("fair/effective_sample_size",),
            "Clipped mass: part of the reference that is lost": ("fair/clipped_mass",),
        }
    charts[f"Which {plural(noun)} suffer?"] = {
        **({f"Loss of each {noun}{range_of}": ("fair_class/loss/",)} if correction else {}),
        f"Repeats of the rarest {noun}": ("fair/repeats_rarest",),
    }
    return charts


def make_layout(charts: Charts, prefix: str = "") -> Mapping[str, Any]:
    """Return the layout for ``add_custom_scalars``, with the prefix that the logger puts before every tag."""
    # Lines only: a band hides the lines of a second run, and is an error for a run without its tags.
    return {
        category: {
            title: ["Multiline", [f"^{re.escape(prefix + tag)}" for tag in tags]] for title, tags in group.items()
        }
        for category, group in charts.items()
    }
