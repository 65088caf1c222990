"""The tab that shows the feedback loop."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

from lightning_fair.app.components import QUIET, Update, notice
from lightning_fair.app.simulation import CLASSES, Settings, simulate
from lightning_fair.common.arrays import Floats

# Okabe and Ito's colors, which readers with color blindness can tell apart.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")


class Feedback:
    """The tab that shows the feedback loop."""

    def __init__(self) -> None:
        first = Settings()
        self.reversals = gr.State(0)
        gr.Markdown(
            "The sampler of the library draws batches from four classes, and the target is a quarter of each. Then "
            "samples are lost: all samples of the most frequent class arrive at the trainer, and of the rarest class "
            "only one in as many as the imbalance says. The sampler learns only which samples were trained on, and "
            "draws more of the classes that are short. Reverse the stream, and the most frequent class becomes the "
            "rarest."
        )
        with gr.Row(elem_classes="sliders"):
            width: dict[str, Any] = {"min_width": 190}
            self.sliders = [
                gr.Slider(1, 50, first.imbalance, step=1, label="Imbalance", info="most frequent : rarest", **width),
                gr.Slider(0, 40, first.alpha, step=0.5, label="Alpha", info="gain; 0: no feedback", **width),
                gr.Slider(0, 0.2, first.floor, step=0.005, label="Floor", info="lowest probability", **width),
                gr.Slider(2, 64, first.horizon, step=1, label="Horizon", info="memory, in batches", **width),
                gr.Slider(0, 1, first.loss_emphasis, step=0.05, label="Loss emphasis", info="lambda2", **width),
            ]
        self.reverse = gr.Button("Reverse the stream", variant="primary", elem_id="reverse")
        self.message = gr.HTML(elem_id="feedback-message")
        with gr.Row():
            self.mix = _line_plot("Class mix of the trained samples", "share", "mix")
            self.weights = _line_plot("Importance weight of a sample", "weight", "weights")

    def connect(self, demo: gr.Blocks) -> None:
        """Connect the components to their functions."""
        inputs, plots = [self.reversals, *self.sliders], [self.message, self.mix, self.weights]
        demo.load(self._plot, inputs, plots, **QUIET)
        gr.on([s.change for s in self.sliders], self._plot, inputs, plots, trigger_mode="always_last", **QUIET)
        self.reverse.click(self._reverse, inputs, [self.reversals, *plots], **QUIET)

    def _reverse(self, reversals: int, *values: float) -> Update:
        return {self.reversals: reversals + 1} | self._plot(reversals + 1, *values)

    def _plot(self, reversals: int, *values: float) -> Update:
        try:
            trace = simulate(Settings(*values), reversals)
        except (ValueError, TypeError) as error:
            # Empty frames rather than None, with which Gradio's plot fails if the browser is drawing it just then.
            empty = np.empty((0, CLASSES))
            plots = {self.mix: _long_frame(0, empty, "share"), self.weights: _long_frame(0, empty, "weight")}
            return {self.message: notice(str(error), "bad")} | plots
        rarest = int(trace.unsteered[-1].argmin())
        message = (
            f"Class {rarest} is the rarest now: {trace.trained[-1, rarest]:.0%} of the trained samples, and "
            f"{trace.unsteered[-1, rarest]:.0%} without feedback. Target: {trace.target[rarest]:.0%}."
        )
        return {
            self.message: notice(message),
            self.mix: _long_frame(trace.first_batch, trace.arrived, "share"),
            self.weights: _long_frame(trace.first_batch, trace.weights, "weight"),
        }


def _line_plot(title: str, y: str, elem_id: str) -> gr.LinePlot:
    colors = {f"class {label}": color for label, color in enumerate(_COLORS)}
    return gr.LinePlot(
        title=title,
        x="batch",
        y=y,
        color="class",
        color_title=" ",
        color_map=colors,
        y_lim=[0, None],
        height=320,
        min_width=300,
        elem_id=elem_id,
    )


def _long_frame(first: int, values: Floats, name: str) -> pd.DataFrame:
    """Return values of shape ``(batches, classes)`` as one row per batch and class."""
    frame = pd.DataFrame(values, columns=[f"class {label}" for label in range(values.shape[1])])
    frame["batch"] = range(first, first + len(values))
    return frame.melt("batch", var_name="class", value_name=name).dropna()
