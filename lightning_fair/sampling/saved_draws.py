"""Checks of the state of a batch sampler before it is restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_fair.common.saved_states import check_state, counts, describe_damage, integer, same
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import draw_spec


def check_sampler_state(
    state: Mapping[str, Any], data: Mapping[str, Any], batch_size: int, global_size: int, controller: FeedbackController
) -> None:
    """Refuse the state of a sampler with other data or batch size, or with a value that no state can have."""
    K = controller.num_classes
    numbers = dict.fromkeys(("epoch", "position", "batch_size", "global_batch_size"), integer())
    spec = {
        "version": integer(),
        "data": {name: same(name, value) for name, value in data.items()},
        **numbers,
        "drawn": counts(K),
        "label_counts": counts(K),
        "controller": controller.check_state,
        "withdrawn": [draw_spec(K)],
    }
    check_state("sampler's", state, spec)
    if state["global_batch_size"] != global_size:
        same("batch size", batch_size)(state["batch_size"])
    draws = {f"controller.in_flight[{i}]": draw for i, draw in enumerate(state["controller"]["in_flight"])}
    draws |= {f"withdrawn[{i}]": draw for i, draw in enumerate(state["withdrawn"])}
    if problem := _problem_of_draws(draws, state, has_sets=controller.label_kind is not None):
        raise ValueError(describe_damage("sampler's", problem))


def _problem_of_draws(draws: Mapping[str, Any], state: Mapping[str, Any], *, has_sets: bool) -> str | None:
    """Return what is wrong with draws to be made again, given by their keys in their order.

    If samples have several labels (``has_sets``), they are more than the places of the batch.
    """
    end, size, drawn = state["controller"]["draws"], state["global_batch_size"], state["drawn"].cpu()
    for key, draw in reversed(list(draws.items())):
        number, of_batch, before = draw["draw_id"], draw["counts"].cpu(), draw["drawn_before"].cpu()
        if number >= end:
            return f"{key}.draw_id must be below {end}, the next one, got {number}"
        if of_batch.sum() < size or (of_batch.sum() > size and not has_sets):
            least = " at least" * has_sets
            return f"{key}.counts must have{least} the sum {size}, the global_batch_size, got {of_batch.sum()}"
        if has_sets:
            of_batch = 0
        if before.shape != drawn.shape or (before + of_batch > drawn).any():
            return (
                f"{key}.drawn_before plus its counts must be at most what was drawn after it, got {before.tolist()[:6]}"
            )
        end, drawn = number, before
    return None
