"""TensorBoard's layout: which charts its tab Custom Scalars has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_fair.common.arrays import Floats

MOST_BY_NAME = 20  # classes; of more, quantiles are shown


class Lines(NamedTuple):
    """A chart of all scalars whose tag begins like one of these."""

    title: str
    tags: tuple[str, ...]


class Bands(NamedTuple):
    """A chart of lines, each in a band: tags of value, lower and upper end."""

    title: str
    series: tuple[tuple[str, str, str], ...]


def charts(
    names: Sequence[str], targets: Sequence[Floats], *, weighted: bool, stream: bool
) -> dict[str, list[Lines | Bands]]:
    """Return the charts of TensorBoard's tab Custom Scalars, by category.

    Args:
        names: Name of each class.
        targets: Class mixes that batches are steered to, first and last, each of shape ``(K,)``.
        weighted: Whether the loss has importance weights, and the plugin therefore knows the losses.
        stream: Whether the data are a stream.
    """
    by_name = len(names) <= MOST_BY_NAME
    mix: list[Lines | Bands]
    if by_name:
        banded = _banded(targets)
        series = tuple(
            (value, f"fair/target_low/{name}", f"fair/target_high/{name}") if c in banded else (value, value, value)
            for c, name in enumerate(names)
            for value in (f"fair/trained_mix/{name}",)
        )
        mix = [Bands("Trained mix, and the band of its target", series)]
    else:
        mix = [
            Bands("Trained mix over target: median, and from least to most", (_spread("over_target", "min", "max"),)),
            Bands("Trained mix over target: median, and 80 % of the classes", (_spread("over_target", "p10", "p90"),)),
            Lines("Trained mix over target: the ten classes furthest from it", ("fair/furthest/",)),
        ]
    if stream:
        mix.insert(0, _of_classes("Mix that arrives", "arriving", by_name))
    # TensorBoard puts charts with bands after all others: so this leaves the two mixes side by side.
    mix.insert(0, Lines("Distance of the trained mix from the target", ("fair/distance",)))
    found: dict[str, list[Lines | Bands]] = {
        "Is the mix where it should be?": mix,
        "How hard is it steered?": [
            Lines("Largest deficit", ("fair/deficit_max",)),
            Lines("Alpha", ("fair/alpha",)),
            _of_classes("Probabilities of the draws", "prob", by_name),
        ],
    }
    if weighted:
        found["What do the weights cost?"] = [
            Lines("Importance weights: mean, 95th percentile, largest", ("fair/weight_",)),
            Lines("Effective sample size, as a fraction of the batch", ("fair/effective_sample_size",)),
        ]
        found["Which classes suffer?"] = [_of_classes("Loss of each class", "loss", by_name)]
    else:
        found["Which classes suffer?"] = []
    found["Which classes suffer?"].append(Lines("Repeats of the rarest class", ("fair/repeats_rarest",)))
    return found


def _banded(targets: Sequence[Floats]) -> set[int]:
    """Return classes whose band is drawn, of each target some: all of them, one over the other, would hide the lines.

    Not only one of each target, since TensorBoard cuts off what lies beyond the 5th and the 95th percentile.
    """
    same: dict[tuple[float, ...], list[int]] = {}
    for c, shares in enumerate(zip(*(target.tolist() for target in targets), strict=True)):
        same.setdefault(shares, []).append(c)
    return {c for classes in same.values() for c in classes[::8]}


def _of_classes(title: str, group: str, by_name: bool) -> Lines | Bands:
    if by_name:
        return Lines(title, (f"fair/{group}/",))
    return Bands(f"{title}: median, and from least to most", (_spread(group, "min", "max"),))


def _spread(group: str, low: str, high: str) -> tuple[str, str, str]:
    return f"fair/{group}/median", f"fair/{group}/{low}", f"fair/{group}/{high}"


def layout_summary(categories: Mapping[str, Sequence[Lines | Bands]], prefix: str = "") -> Any:
    """Return the event that tells TensorBoard of the charts: its own writer asks for TensorFlow, torch's for one band.

    Args:
        categories: The charts.
        prefix: What the logger puts before every tag.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def chart(of: Lines | Bands) -> Any:
        if isinstance(of, Lines):
            patterns = [f"^{re.escape(prefix + tag)}" for tag in of.tags]
            return layout_pb2.Chart(title=of.title, multiline=layout_pb2.MultilineChartContent(tag=patterns))
        series = [
            layout_pb2.MarginChartContent.Series(value=prefix + value, lower=prefix + low, upper=prefix + high)
            for value, low, high in of.series
        ]
        return layout_pb2.Chart(title=of.title, margin=layout_pb2.MarginChartContent(series=series))

    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=[chart(of) for of in inside]) for title, inside in categories.items()
        ]
    )
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    content = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()], tensor_shape=TensorShapeProto())
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=content, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])
