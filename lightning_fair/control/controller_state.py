"""The state of a controller: how it is saved, checked and loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from copy import copy
from typing import Any

from lightning_fair.common.arrays import to_arrays, to_tensors
from lightning_fair.common.saved_states import (
    array,
    check_order,
    check_state,
    check_version,
    corrected_mix,
    integer,
    same,
)
from lightning_fair.control import law
from lightning_fair.control.draw import Draw, draw_spec
from lightning_fair.control.rewindable import Rewindable

_STATE_VERSION = 3
_MAX_AHEAD = 2**31  # draws that a state counts as made ahead: a feedback delay can be as large
_ARRAYS = ("trained_mix", "ema_loss", "loss_score")


class ControllerState(Rewindable):
    """The state of a :class:`~lightning_fair.FeedbackController`, which describes the attributes."""

    num_classes: int
    batch_size: int
    made: int
    epoch: int
    feedback_delay: int

    def bind_batch(self, batch_size: int) -> None:
        """Check that the gain is stable for a batch of this size."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain numbers, so that it loads with ``weights_only=True``.

        It is that before ``oldest_ahead``: the draws in flight are made again.
        """
        base = self._base
        self._reports.forget(base.draws)
        return {
            "version": _STATE_VERSION,
            "num_classes": self.num_classes,
            "draws": base.draws,
            # If the delay is above the number of batches drawn ahead, this does not depend on that number.
            "made": max(self.made, self._reports.newest + self.feedback_delay),
            "epoch": self.epoch,
            "target": {**self._target.state_dict(), "progress": base.progress},
            "objective": {**self.objective.state_dict(), **to_tensors({"tilt": base.tilt, "scores": base.scores})},
            **to_tensors({name: getattr(base, name) for name in _ARRAYS}),
            "in_flight": [draw.state_dict() for draw in self._in_flight if draw.draw_id < base.draws],
            "reports": self._reports.state_dict(),
        }

    def state_spec(self) -> dict[str, Any]:
        """Return what a state has to be; see :mod:`~lightning_fair.common.saved_states`."""
        K = self.num_classes
        arrays = corrected_mix(K), array(K, nan=True), array(K, low=-law.MAX_Z, high=law.MAX_Z)
        return {
            "version": integer(),
            "num_classes": same("num_classes", K),
            "draws": integer(),
            "made": integer(),
            "epoch": integer(),
            "target": self._target.state_spec(),
            "objective": self.objective.state_spec(),
            **dict(zip(_ARRAYS, arrays, strict=True)),
            "in_flight": [draw_spec(K)],
            "reports": self._reports.state_spec(K),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``load_state_dict`` would refuse."""
        self._with_state(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Raises:
            ValueError: If it has another version, number of classes, target or reference, or a value that no state can
                have. Nothing is changed then. Other settings may differ.
        """
        vars(self).update(vars(self._with_state(state)))

    def _with_state(self, state: Mapping[str, Any]) -> ControllerState:
        check_version("controller", state, _STATE_VERSION)
        self._target.check_kind_of(state)
        check_state("controller's", state, self.state_spec())
        draws, made, reports = state["draws"], state["made"], state["reports"]
        newest, waiting = reports["newest"], reports["waiting"]
        for key, numbers, limit, most in (
            ("draw_id of in_flight", [draw["draw_id"] for draw in state["in_flight"]], "draws - 1", draws - 1),
            ("made", [made], f"draws + {_MAX_AHEAD}", draws + _MAX_AHEAD),
            ("reports.newest", [newest], "draws", draws),
            ("due of reports.waiting", [report["due"] for report in waiting], "made", made),
            ("draw_id of reports.waiting", sorted(report["draw_id"] for report in waiting), "reports.newest", newest),
        ):
            check_order("controller's", key, numbers, limit, most)
        loaded = copy(self)
        for part in ("_target", "objective", "_reports"):
            setattr(loaded, part, copy(getattr(self, part)))
        loaded._target.load_state_dict(state["target"])
        if self._target.exponent is not None:
            loaded.bind_batch(self.batch_size)  # the target is that of the state now
        loaded.objective.load_state_dict(state["objective"])
        loaded._reports.load_state_dict(state["reports"])
        loaded.draws, loaded.made, loaded.epoch = draws, max(draws, made), state["epoch"]
        arrays = to_arrays(state)
        vars(loaded).update({name: arrays[name] for name in _ARRAYS})
        loaded._in_flight = deque(map(Draw.from_state_dict, state["in_flight"]), self._in_flight.maxlen)
        loaded._overflowed, loaded._moment = False, loaded.moment
        loaded._apply_reports()
        return loaded
