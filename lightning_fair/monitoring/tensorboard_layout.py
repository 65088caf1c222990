"""The charts of TensorBoard's tab Custom Scalars."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_fair.common.arrays import Floats

MAX_NAMED_CLASSES = 20  # with more classes, quantiles over the classes are shown


class Lines(NamedTuple):
    """A chart of all scalars whose tag begins with this one."""

    title: str
    tag: str


class Bands(NamedTuple):
    """A chart of lines, each in a band: tags of value, lower and upper end."""

    title: str
    series: tuple[tuple[str, str, str], ...]


Charts = dict[str, list[Lines | Bands]]


def plural(noun: str) -> str:
    """Return "classes" or "groups"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def make_charts(
    class_names: Sequence[str],
    targets: Sequence[Floats],
    *,
    correction: str | None,
    arriving: bool,
    reference_moves: bool = False,
    noun: str = "class",
) -> Charts:
    """Return the charts, by category, for the first and the last target, each of shape ``(K,)``.

    Args:
        class_names: Name of each class.
        targets: First and last target.
        correction: How the loss is corrected; None: not at all, and no losses are known.
        arriving: Whether the class mix that a stream reads is logged.
        reference_moves: Whether the mix that the loss stands for can move.
        noun: Word for a class.
    """
    by_name = len(class_names) <= MAX_NAMED_CLASSES
    # TensorBoard puts charts with bands after all others, so the two mixes stand side by side.
    mix: list[Lines | Bands] = [Lines("Distance of the trained mix from the target", "fair/distance")]
    if arriving:
        mix.append(_class_chart("Mix that arrives", "arriving", by_name))
    if by_name:
        mix.append(Bands("Trained mix, and the band of its target", _named_series(class_names, targets)))
    else:
        title = "Trained mix over target"
        mix += [
            _class_chart(title, "over_target", by_name),
            Bands(f"{title}: median, and 80 % of the {plural(noun)}", (_quantiles("over_target", "p10", "p90"),)),
            Lines(f"{title}: the ten {plural(noun)} furthest from it", "fair/furthest/"),
        ]
    charts: Charts = {
        "Is the mix where it should be?": mix,
        "How hard is it steered?": [
            Lines("Largest deficit", "fair/deficit_max"),
            Lines("Alpha", "fair/alpha"),
            _class_chart("Probabilities of the draws", "prob", by_name),
        ],
    }
    if reference_moves and correction in ("weights", "logits"):
        charts["What does the loss stand for?"] = [_class_chart("Mix that the loss stands for", "reference", by_name)]
    if correction == "weights":
        charts["What do the weights cost?"] = [
            Lines("Importance weights: mean, 95th percentile, largest", "fair/weight_"),
            Lines("Effective sample size: batch, last horizon, run", "fair/effective_sample_size"),
            Lines("Clipped mass: part of the reference that is lost", "fair/clipped_mass"),
        ]
    charts[f"Which {plural(noun)} suffer?"] = [
        *([_class_chart(f"Loss of each {noun}", "loss", by_name)] if correction else []),
        Lines(f"Repeats of the rarest {noun}", "fair/repeats_rarest"),
    ]
    return charts


def _named_series(class_names: Sequence[str], targets: Sequence[Floats]) -> tuple[tuple[str, str, str], ...]:
    """Return the trained mix of each class, some of them with the band of the target."""
    # Bands over one another would hide the lines, so every eighth class with the same target has one. One class per
    # target would not do, because TensorBoard cuts off values beyond the 5th and the 95th percentile.
    same_target: dict[tuple[float, ...], list[int]] = {}
    for c, shares in enumerate(zip(*(target.tolist() for target in targets), strict=True)):
        same_target.setdefault(shares, []).append(c)
    with_band = {c for classes in same_target.values() for c in classes[::8]}
    return tuple(
        (value, f"fair/target_low/{name}", f"fair/target_high/{name}") if c in with_band else (value, value, value)
        for c, name in enumerate(class_names)
        for value in (f"fair/trained_mix/{name}",)
    )


def _class_chart(title: str, group: str, by_name: bool) -> Lines | Bands:
    if by_name:
        return Lines(title, f"fair/{group}/")
    return Bands(f"{title}: median, and from least to most", (_quantiles(group, "min", "max"),))


def _quantiles(group: str, low: str, high: str) -> tuple[str, str, str]:
    return f"fair/{group}/median", f"fair/{group}/{low}", f"fair/{group}/{high}"


def make_layout(charts: Mapping[str, Sequence[Lines | Bands]], prefix: str = "") -> Any:
    """Return the summary that lists the charts, with the prefix that the logger puts before every tag."""
    # `SummaryWriter.add_custom_scalars` takes only one band per chart.
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def to_chart(chart: Lines | Bands) -> Any:
        if isinstance(chart, Lines):
            lines = layout_pb2.MultilineChartContent(tag=[f"^{re.escape(prefix + chart.tag)}"])
            return layout_pb2.Chart(title=chart.title, multiline=lines)
        series = [
            layout_pb2.MarginChartContent.Series(value=prefix + value, lower=prefix + low, upper=prefix + high)
            for value, low, high in chart.series
        ]
        return layout_pb2.Chart(title=chart.title, margin=layout_pb2.MarginChartContent(series=series))

    layout = layout_pb2.Layout()
    for title, category in charts.items():
        layout.category.add(title=title, chart=[to_chart(chart) for chart in category])
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    content = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, tensor=content, metadata=SummaryMetadata(plugin_data=plugin))
    return Summary(value=[value])
