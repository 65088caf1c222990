import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_fair import FeedbackController
from lightning_fair.schedules import Constant, Cosine, Join, Linear, Schedule, Shift, Step, as_schedule

values = st.floats(-100.0, 100.0)


def test_constant_never_changes():
    assert {Constant(3.0)(step, epoch) for step in range(5) for epoch in range(5)} == {3.0}


@given(start=values, end=values, duration=st.integers(1, 50), begin=st.integers(0, 50), t=st.integers(0, 120))
def test_ramps_follow_their_formulas(start, end, duration, begin, t):
    progress = min(max((t - begin) / duration, 0.0), 1.0)
    linear = start + (end - start) * progress
    cosine = start + (end - start) * (1.0 - math.cos(math.pi * progress)) / 2.0
    assert Linear(start, end, duration, begin)(step=t, epoch=0) == pytest.approx(linear, abs=1e-12)
    assert Cosine(start, end, duration, begin)(step=t, epoch=0) == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize("ramp", [Linear, Cosine])
def test_ramp_is_constant_before_and_after(ramp):
    schedule = ramp(1.0, 5.0, 10, begin=20)
    assert [schedule(step=t, epoch=0) for t in (0, 20, 30, 1000)] == [1.0, 1.0, 5.0, 5.0]


@pytest.mark.parametrize("ramp", [Linear, Cosine])
def test_unit_chooses_the_clock(ramp):
    assert ramp(0.0, 4.0, 2, unit="epoch")(step=1000, epoch=1) == pytest.approx(2.0)
    assert ramp(0.0, 4.0, 2, unit="step")(step=1, epoch=1000) == pytest.approx(2.0)


def test_by_epoch_is_that_of_any_part():
    by_step, by_epoch = Linear(0.0, 1.0, 3), Step(0.0, 1.0, at=3, unit="epoch")
    assert (Constant(1.0).by_epoch, by_step.by_epoch, by_epoch.by_epoch) == (False, False, True)
    assert Join([by_step, by_epoch], [5]).by_epoch
    assert not Join([by_step, by_step], [5]).by_epoch


def test_step_jumps_once():
    assert [Step(1.0, 5.0, at=3)(step=t, epoch=9) for t in (0, 2, 3, 99)] == [1.0, 1.0, 5.0, 5.0]
    assert [Step(1.0, 5.0, at=3, unit="epoch")(step=99, epoch=e) for e in (2, 3)] == [1.0, 5.0]
    assert Step(5.0, 1.0, at=3).extremes == (5.0, 1.0)


def test_join_changes_at_its_boundaries():
    schedule = Join([Constant(1.0), Constant(2.0), Constant(3.0)], [10, 20])
    assert [schedule(step=t, epoch=0) for t in (0, 9, 10, 19, 20, 99)] == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    by_epoch = Join([Constant(1.0), Constant(2.0)], [3], unit="epoch")
    assert [by_epoch(step=50, epoch=e) for e in (2, 3)] == [1.0, 2.0]


@given(
    schedules=st.lists(
        st.builds(Linear, values, values, st.integers(1, 9), st.integers(0, 9))
        | st.builds(Cosine, values, values, st.integers(1, 9), st.integers(0, 9))
        | st.builds(Step, values, values, st.integers(0, 9))
        | st.builds(Constant, values),
        min_size=1,
        max_size=3,
    )
)
def test_schedule_stays_between_its_extremes(schedules):
    schedule = Join(schedules, [10 * (i + 1) for i in range(len(schedules) - 1)])
    taken = [schedule(step=t, epoch=0) for t in range(40)]
    low, high = min(schedule.extremes), max(schedule.extremes)
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    assert low - slack <= min(taken)
    assert max(taken) <= high + slack


@pytest.mark.parametrize("number", [3, 3.5, np.float64(3.5), np.float32(3.5), np.int64(3)])
def test_number_becomes_a_constant(number):
    assert as_schedule(number) == Constant(float(number))


def test_schedule_is_unchanged():
    schedule = Linear(0.0, 1.0, 5)
    assert as_schedule(schedule) is schedule


def test_subclass_needs_its_extremes():
    class Half(Schedule):
        def __call__(self, step, epoch):
            return 0.5

    with pytest.raises(TypeError, match="abstract"):
        Half()


@pytest.mark.parametrize("value", [True, "8", None, lambda step: 8.0])
def test_other_types_are_refused(value):
    with pytest.raises(TypeError, match=r"alpha must be a number in \[0, inf\) or a .*Schedule \(subclass it .*got"):
        as_schedule(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(math.nan), r"value must lie in \(-inf, inf\), got nan"),
        (lambda: Linear(0.0, math.inf, 5), r"end must lie in \(-inf, inf\), got inf"),
        (lambda: Cosine(math.nan, 1.0, 5), r"start must lie in \(-inf, inf\), got nan"),
        (lambda: Linear(0.0, 1.0, 0), r"duration must lie in \[1, inf\), got 0"),
        (lambda: Cosine(0.0, 1.0, 5, begin=-1), r"begin must lie in \[0, inf\), got -1"),
        (lambda: Linear(0.0, 1.0, 5, unit="batch"), r"unit must be 'step' or 'epoch', got 'batch'"),
        (lambda: Join([Constant(1.0)], [], unit="batch"), r"unit must be 'step' or 'epoch', got 'batch'"),
        (lambda: Join([Constant(1.0)], [5]), r"one boundary fewer than schedules, got 1 schedules and 1 boundaries"),
        (lambda: Join([Constant(1.0)] * 3, [5, 5]), r"boundaries must increase, got \[5, 5\]"),
        (lambda: Step(0.0, math.inf, at=3), r"after must lie in \(-inf, inf\), got inf"),
        (lambda: Step(0.0, 1.0, at=-1), r"at must lie in \[0, inf\), got -1"),
        (lambda: Shift(Linear(0.0, 2.0, 5)), r"extremes of progress \(Linear\) must lie in \[0, 1\], got 2"),
        (lambda: Shift(Linear(-0.5, 1.0, 5)), r"\[0, 1\], got -0.5"),
        (lambda: Shift(Own(extremes=(0.0, math.nan))), r"\[0, 1\], got nan"),
        *[
            (make, "nan|inf")
            for time in (math.nan, math.inf, -math.inf)
            for make in (
                lambda time=time: Linear(0.0, 8.0, time),
                lambda time=time: Cosine(0.0, 8.0, 5, begin=time),
                lambda time=time: Step(0.0, 1.0, at=time),
                lambda time=time: Join([Constant(0.0)] * 2, boundaries=[time]),
                lambda time=time: Join([Constant(0.0)] * 3, boundaries=[1, time]),
            )
        ],
    ],
)
def test_invalid_schedule_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- values that a user's own schedule gives ---------------------------------------------------------


class Own(Schedule):
    """Gives ``value`` from step 3 of epoch 1 on, before 0.5."""

    def __init__(self, value=0.5, extremes=(0.0, 1.0)):
        self.value, self._extremes = value, extremes

    def __call__(self, step, epoch):
        return self.value if epoch == 1 and step >= 3 else 0.5

    @property
    def extremes(self):
        return self._extremes


BAD_VALUES = [math.nan, math.inf, -0.01, 1.01, 10**400, None, "0.5", [0.5], 1j, torch.tensor([0.1, 0.2])]


@pytest.mark.parametrize("value", BAD_VALUES, ids=str)
@pytest.mark.parametrize("name", ["alpha", "progress"])
def test_wrong_value_is_refused_at_the_draw(name, value):
    """The error has the schedule, the step, the epoch and the value, and nothing is drawn with it."""
    own = Own(value)
    controller = FeedbackController(2, **({"alpha": own} if name == "alpha" else {"target_probs": Shift(own, [1, 0])}))
    controller.epoch = 1
    for _ in range(3):
        controller.step_update([0, 1])
    with pytest.raises(ValueError, match=rf"Own gives {name} the value .* at step 3 of epoch 1, .*values from 0 to 1"):
        controller.next_probs()
    own.value = 1.0
    assert np.isfinite(controller.next_probs()).all()
    assert controller.progress == (1.0 if name == "progress" else 0.0)


@pytest.mark.parametrize("kind", [np.float32, torch.tensor])
@pytest.mark.parametrize("extreme", [0.1, 0.3, 0.7])
def test_single_precision_at_an_extreme(kind, extreme):
    assert Own(kind(extreme), extremes=(0.0, extreme)).value_at(3, 1, "alpha") == pytest.approx(extreme)


@pytest.mark.parametrize("extremes", [8.0, (), (None, 1.0), [0.0, 1.0], ("a", "b"), (0.0, math.nan)])
@pytest.mark.parametrize("make", [Shift, lambda own: FeedbackController(2, alpha=own)], ids=["shift", "alpha"])
def test_wrong_extremes_are_refused(make, extremes):
    with pytest.raises((TypeError, ValueError), match=r"extremes of (Own|progress \(Own\)|alpha \(Own\)) must"):
        make(Own(extremes=extremes))


@pytest.mark.parametrize("value", [1, True, np.float32(1.0), torch.tensor(1.0), 1.0 + 1e-12])
def test_value_becomes_a_float(value):
    """Rounding at an extreme is cut off."""
    got = Own(value).value_at(3, 1, "alpha")
    assert (type(got), got) == (float, 1.0)


def test_shift_by_a_number_is_refused():
    with pytest.raises(
        TypeError, match=r"must be a lightning_fair.schedules.Schedule, got 0.5.*Step\(0.0, 1.0, at=1000"
    ):
        Shift(0.5)
