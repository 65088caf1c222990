"""A warning of runs in which nothing can be balanced."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn

from lightning_fair.control.draw_source import DrawSource


def warn_of_single_class(source: DrawSource, noun: str) -> None:
    """Warn if every batch of the run has the same class only; ``noun`` is the word for a class."""
    controller, is_stream = source.controller, source.arriving is not None
    is_drawn = (controller.target_at(0.0) > 0) | (controller.target_at(1.0) > 0)
    if not is_stream:
        is_drawn &= source.class_counts > 0
    if is_drawn.sum() == 1:
        remedy = "FairStream(label_fn=...)" if is_stream else "FairSampling(labels=...)"
        rank_zero_warn(
            f"All batches are of {noun} {int(is_drawn.argmax())} alone, so FairSampling has nothing to balance. Either "
            "the data have no other, for example a Subset of sorted data, or their labels are something else (pass the "
            f"right ones: {remedy}), or target_probs gives the others no probability."
        )
