"""The tab that shows the feedback loop."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from lightning_fair.app.components import QUIET, Update, notice
from lightning_fair.app.simulation import CLASSES, simulate
from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check_number

# Okabe and Ito's colors, which readers with color blindness can tell apart.
_COLORS = {"class 0": "#0072b2", "class 1": "#e69f00", "class 2": "#009e73", "class 3": "#cc79a7"}


class Feedback:
    """The tab that shows the feedback loop."""

    def __init__(self) -> None:
        self.reversals = gr.State(0)
        gr.Markdown(
            "The sampler of the library draws batches from four classes, and the target is a quarter of each. Then "
            "samples are lost: the most frequent class loses none, and the rarest keeps one in eight if the imbalance "
            "is 8. The sampler learns only which samples were trained on, and draws more of the classes that are "
            "short. When the stream is reversed, the most frequent class becomes the rarest, and what was drawn less "
            "often is needed at once: its few samples weigh more, but none more than the largest weight, because each "
            "draw is mixed with the target."
        )
        with gr.Row(elem_classes="sliders"):
            self.sliders = [
                gr.Slider(1, 50, 8, step=1, label="Imbalance", info="most frequent : rarest", min_width=190),
                gr.Slider(0, 40, 8, step=0.5, label="Alpha", info="gain; 0: no feedback", min_width=190),
                gr.Slider(1, 50, 10, step=1, label="Largest weight", info="1: no feedback", min_width=190),
                gr.Slider(2, 64, 16, step=1, label="Horizon", info="memory, in batches", min_width=190),
                gr.Slider(0, 1, 0, step=0.05, label="Loss feedback", info="lambda2", min_width=190),
            ]
        self.reverse = gr.Button("Reverse the stream", variant="primary", elem_id="reverse")
        self.message = gr.HTML(elem_id="feedback-message")
        with gr.Row():
            options: dict[str, Any] = {"x": "batch", "color": "class", "color_title": " ", "color_map": _COLORS}
            options |= {"y_lim": [0, None], "height": 320, "min_width": 300}
            self.mix = gr.LinePlot(title="Class mix of the trained samples", y="share", elem_id="mix", **options)
            self.weights = gr.LinePlot(title="Importance weight of a sample", y="weight", elem_id="weights", **options)

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
        rarest = int(trace.unsteered[-1].argmin())
        message = (
            f"Class {rarest} is the rarest now: {trace.trained[-1, rarest]:.0%} of the trained samples, and "
            f"{trace.unsteered[-1, rarest]:.0%} without feedback. Target: {1 / CLASSES:.0%}."
        )
        return {
            self.message: notice(message),
            self.mix: _long_frame(trace.first_batch, trace.arrived, "share"),
            self.weights: _long_frame(trace.first_batch, trace.weights, "weight"),
        }


def _long_frame(first: int, values: Floats, name: str) -> pd.DataFrame:
    """Return values of shape ``(batches, 4)`` as one row per batch and class."""
    frame = pd.DataFrame(values, columns=[*_COLORS])
    frame["batch"] = range(first, first + len(values))
    return frame.melt("batch", var_name="class", value_name=name).dropna()
