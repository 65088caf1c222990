"""The tab that shows the feedback loop."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from lightning_fair.app.components import QUIET, Update, notice
from lightning_fair.app.simulation import CLASSES, Trace, simulate
from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check_number

_LAST = 20  # batches
_STEADY = 1e-6  # range of a weight that stays as it is
# Okabe and Ito's colors, which readers with color blindness can tell apart.
_COLORS = {"class 0": "#0072b2", "class 1": "#e69f00", "class 2": "#009e73", "class 3": "#cc79a7"}


class Feedback:
    """The tab that shows the feedback loop."""

    def __init__(self) -> None:
        self.reversals = gr.State(0)
        gr.Markdown(
            "Each of four classes is to be a quarter of the trained samples. The rarest class loses most of its "
            "samples on the way, so the sampler draws more of it. Press **Reverse the stream** to make it the most "
            "frequent one; move **Alpha** to 0 for no feedback, or to 40 for too much."
        )
        with gr.Row(elem_classes="sliders"):
            self.sliders = [
                gr.Slider(1, 50, 8, step=1, label="Imbalance", info="most frequent : rarest", min_width=130),
                gr.Slider(0, 40, 8, step=0.5, label="Alpha", info="gain; 0: no feedback", min_width=130),
                gr.Slider(1, 50, 10, step=1, label="Largest weight", info="1: no feedback", min_width=130),
                gr.Slider(2, 64, 16, step=1, label="Horizon", info="memory, in batches", min_width=130),
                gr.Slider(0, 1, 0, step=0.05, label="Loss feedback", info="lambda2", min_width=130),
            ]
        self.reverse = gr.Button("Reverse the stream", variant="primary", elem_id="reverse")
        self.message = gr.HTML(elem_id="feedback-message")
        with gr.Row():
            options: dict[str, Any] = {"x": "batch", "color": "class", "color_title": " ", "color_map": _COLORS}
            options |= {"y_lim": [0, None], "height": 320, "min_width": 300}
            self.mix = gr.LinePlot(title="Class mix of the trained samples", y="share", elem_id="mix", **options)
            self.weights = gr.LinePlot(title="Importance weight of a sample", y="weight", elem_id="weights", **options)
        gr.Markdown(
            "The sampler is the library's own. It learns only which samples were trained on. The most frequent class "
            "loses none, and the rarest keeps one in eight if the imbalance is 8. After a reversal the samples that "
            "were drawn less often are needed at once: those few weigh more, but none more than the largest weight, "
            "because each draw is mixed with the target."
        )

    def connect(self, demo: gr.Blocks) -> None:
        """Connect the components to their functions."""
        inputs, plots = [self.reversals, *self.sliders], [self.message, self.mix, self.weights]
        # Values as they are sent: Gradio's own check of a slider fails without words if one is not a number.
        options = QUIET | {"preprocess": False}
        demo.load(self._plot, inputs, plots, **options)
        gr.on([s.change for s in self.sliders], self._plot, inputs, plots, trigger_mode="always_last", **options)
        self.reverse.click(self._reverse, inputs, [self.reversals, *plots], **options)

    def _reverse(self, reversals: int, *values: float) -> Update:
        return {self.reversals: reversals + 1} | self._plot(reversals + 1, *values)

    def _plot(self, reversals: int, *values: float) -> Update:
        try:
            for slider, value in zip(self.sliders, values, strict=True):
                check_number(f"{slider.label}", value, f"[{slider.minimum}, {slider.maximum}]")
            trace = simulate(*values, reversals=reversals)
        except (ValueError, TypeError) as error:
            # Empty frames rather than None, with which Gradio's plot fails if the browser is drawing it just then.
            empty = np.empty((0, CLASSES))
            plots = {self.mix: _long_frame(0, empty, "share"), self.weights: _long_frame(0, empty, "weight")}
            return {self.message: notice(str(error), "bad")} | plots
        return {
            self.message: _summary(trace, alpha=values[1]),
            self.mix: _long_frame(trace.first_batch, trace.arrived, "share"),
            self.weights: _long_frame(trace.first_batch, trace.weights, "weight"),
        }


def _summary(trace: Trace, alpha: float) -> Any:
    if alpha >= trace.alpha_limit:
        last = trace.arrived[-_LAST:]
        low, high = np.nanmin(last, axis=0), np.nanmax(last, axis=0)
        widest = int((high - low).argmax())
        shown = (
            f"In the last {_LAST} batches class {widest} had {low[widest]:.0%} to {high[widest]:.0%} of the trained "
            f"samples, target {1 / CLASSES:.0%}."
        )
        if np.ptp(trace.weights[-_LAST:], axis=0).max() < _STEADY:
            shown = "It does not here, because the feedback has nothing to correct or its largest weight is 1."
        return notice(
            f"Alpha {alpha:g} is too high, and training would refuse it: at this horizon and loss feedback the class "
            f"mix can oscillate from {trace.alpha_limit:.3g} on. {shown} Lower alpha or the loss feedback, or raise "
            "the horizon.",
            "warn",
        )
    rarest = int(trace.unsteered[-1].argmin())
    return notice(
        f"Class {rarest} is the rarest now: {trace.trained[-1, rarest]:.0%} of the trained samples, and "
        f"{trace.unsteered[-1, rarest]:.0%} without feedback. Target: {1 / CLASSES:.0%}."
    )


def _long_frame(first: int, values: Floats, name: str) -> pd.DataFrame:
    """Return values of shape ``(batches, 4)`` as one row per batch and class."""
    frame = pd.DataFrame(values, columns=[*_COLORS])
    frame["batch"] = range(first, first + len(values))
    return frame.melt("batch", var_name="class", value_name=name).dropna()
