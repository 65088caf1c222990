"""The controller's state in shared memory."""

import pickle

import numpy as np
import pytest

from lightning_fair import FeedbackController, schedules
from lightning_fair.streaming.positions import Start
from lightning_fair.streaming.shared_state import SharedState


def trained(batches):
    controller = FeedbackController(2, schedules.Shift(schedules.Linear(0.0, 1.0, 10), [1.0, 0.0], [0.5, 0.5]))
    for _ in range(batches):
        controller.next_probs()
        controller.report(np.array([6, 2]))
    return controller


def test_copy_continues_from_published_state():
    shared, controller = SharedState(2), trained(5)
    shared.publish(controller)
    copy = shared.copy_controller(trained(0))
    assert copy.draws == 5
    assert copy.progress == controller.progress == pytest.approx(0.4)
    assert copy.trained_mix.tolist() == controller.trained_mix.tolist()
    assert copy.next_probs().tolist() == controller.next_probs().tolist()


def test_newer_controller_is_copied_as_it_is():
    shared, controller = SharedState(2), trained(5)
    shared.publish(trained(3))
    copy = shared.copy_controller(controller)
    assert copy.draws == 5
    assert copy.trained_mix.tolist() == controller.trained_mix.tolist()


def test_copy_of_an_iteration_begins_where_it_began():
    """Also in a process that starts after batches of the iteration were reported."""
    shared, controller = SharedState(2), trained(5)
    shared.begin(Start(controller.draws, controller.progress, controller.trained_mix))
    shared.publish(trained(7))
    copy = shared.copy_controller(trained(0))
    assert copy.draws == 5
    assert copy.trained_mix.tolist() == controller.trained_mix.tolist()
    shared.begin(None)
    assert shared.copy_controller(trained(0)).draws == 7


def test_copy_has_no_draws_in_flight():
    controller = FeedbackController(2)
    shared = SharedState(2)
    shared.publish(controller)
    assert shared.copy_controller(controller).in_flight == ()


def test_epoch_and_feedback_are_published():
    shared, controller = SharedState(2), FeedbackController(2, lambda2=0.5)
    copy = FeedbackController(2, lambda2=0.5)
    assert shared.epoch is None
    shared.epoch = 3
    controller.loss_score, controller.objective.tilt = np.array([-1.0, 1.0]), np.array([0.5, -0.5])
    shared.publish(controller)
    assert shared.copy_controller(controller).epoch == 3
    pickle.loads(pickle.dumps(shared)).pass_feedback_to(copy)
    assert (copy.loss_score.tolist(), copy.objective.tilt.tolist()) == ([-1.0, 1.0], [0.5, -0.5])
