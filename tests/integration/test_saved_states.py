"""Damaged states: each is refused by an error that names the key, and changes nothing; or it is one to go on with."""

import copy
import math
import re
import struct
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from control_helpers import labels_from_counts, make_draw, same
from lightning.fabric import Fabric
from lightning.fabric.utilities import move_data_to_device
from lightning_helpers import Weighted, fit, loader, moving
from stream_runs import long_tail, stream

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.saved_states import checksum
from lightning_fair.control.target_values import AutoTarget
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.schedules import Linear, Shift, Step

LABELS = np.repeat(np.arange(3), [60, 30, 10])
RESTART = 'FairSampling(resume="restart") keeps the model'

# -- owners of a state ---------------------------------------------------------------------------------


def some_losses(rng, counts):
    return rng.exponential(size=counts.size) * counts, counts


def controller_with(**settings):
    def make():
        return FeedbackController(3, **{"horizon": 16.0, "feedback_delay": 4, "class_counts": [60, 30, 10], **settings})

    def train(controller, steps, lead=2):
        rng = np.random.default_rng(controller.draws)
        for _ in range(steps):
            draw = make_draw(controller, rng.multinomial(8, controller.next_probs()))
            assert_mixes(draw)
            if len(controller.in_flight) > lead:
                labels = labels_from_counts(controller.oldest.counts)[1:]
                controller.step_update(labels, rng.exponential(size=labels.size))
            if controller.objective.feedback == "validation":
                controller.report_validation(rng.random(3))

    return make, train, FeedbackController.state_dict, FeedbackController.load_state_dict


def sampler_with_workers(labels=LABELS):
    sets = labels if isinstance(labels, LabelSets) else None
    rows = np.eye(3, dtype=int)[labels] if sets is None else sets.to_dense()

    def make():
        controller = FeedbackController(3, lambda2=0.3, horizon=16.0, feedback_delay=4, label_sets=sets)
        return FeedbackBatchSampler(labels, 8, 100, controller, seed=3)

    def train(sampler, steps, lead=4):
        rng, batches = np.random.default_rng(sampler.controller.draws), iter(sampler)
        for _ in range(steps):
            while sampler.num_undelivered <= lead:
                assert len(next(batches)) == 8
            draw = sampler.deliver()
            assert_mixes(draw)
            assert rows[draw.indices].sum(axis=0).tolist() == draw.counts.tolist()
            sampler.report(draw, draw.counts, *some_losses(rng, draw.counts))
        sampler.withdraw()
        for _ in range(2):  # a part of the draws is made again
            next(iter(sampler.iter_with_ids()))

    return make, train, FeedbackBatchSampler.capture, FeedbackBatchSampler.restore


def tracker_of_stream():
    def make():
        return StreamTracker(stream(long_tail(400), FeedbackController(4, horizon=16.0, lambda2=0.3)))

    def train(tracker, steps):
        rng = np.random.default_rng(0)
        for _, (draw, _) in zip(range(steps), tracker.stream.batches(), strict=False):
            assert_mixes(draw)
            tracker.report(draw, draw.counts, *some_losses(rng, draw.counts))

    return make, train, StreamTracker.capture, StreamTracker.restore


def check_of_labels(decided):
    def make():
        return LabelCheck(3, can_reorder=True)

    def train(check, steps):
        rng = np.random.default_rng(0)
        for draw_id in range(steps):
            drawn = rng.integers(0, 3, 8 if decided else 1)
            names = [("ant", "bee", "cow")[label] for label in rng.integers(0, 3, drawn.size)]
            batch = torch.from_numpy(drawn), torch.from_numpy(drawn)[rng.permutation(drawn.size)], names
            labels, _ = check(batch, SimpleNamespace(draw_id=draw_id, labels=drawn))
            assert labels.shape == drawn.shape
            assert ((labels >= 0) & (labels < 3)).all()

    return make, train, LabelCheck.state_dict, LabelCheck.load_state_dict


def assert_mixes(draw):
    for mix in (draw.probs, draw.reference, draw.trained_mix):
        assert np.isfinite(mix).all()
        assert math.isclose(mix.sum(), 1.0, abs_tol=1e-5)
        assert mix.min() >= -1e-5


OWNERS = {
    "losses": controller_with(lambda2=0.3),
    "losses to the objective": controller_with(lambda2=0.3, feedback_to="objective", reference="uniform"),
    "validation": controller_with(feedback="validation", feedback_to="objective", reference="prior"),
    "moving target": controller_with(target_probs=Shift(Linear(0.0, 1.0, 30), start="prior")),
    "auto target": controller_with(target_probs=AutoTarget(0.5)),
    "sampler": sampler_with_workers(),
    "sampler, several labels": sampler_with_workers(
        LabelSets.from_matrix(np.column_stack([LABELS == 0, LABELS > 0, LABELS * np.arange(100) % 7 == 1]))
    ),
    "stream": tracker_of_stream(),
    "label check": check_of_labels(decided=False),
    "label check, decided": check_of_labels(decided=True),
}


# -- damages -------------------------------------------------------------------------------------------

REMOVED = object()


def paths(value, path=()):
    """The place of every key and every element, and of the state itself."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        yield from paths(inner, (*path, name))


def put(number):
    """One number in the place of the first one."""

    def damage(value):
        if not isinstance(value, torch.Tensor):
            return number
        changed = value.double() if isinstance(number, float) or value.dtype == torch.bool else value.clone()
        changed[:1] = number
        return changed

    return damage


def flip(place, bit):
    """One bit flipped in the first number."""

    def damage(value):
        if isinstance(value, torch.Tensor) and value.numel():
            changed = value.numpy().copy()
            changed.view(np.uint8)[min(place, value.element_size() - 1)] ^= bit if value.dtype != torch.bool else 1
            return torch.from_numpy(changed)
        if type(value) is int:
            return value ^ bit << 8 * place
        if type(value) is float:
            packed = bytearray(struct.pack("<d", value))
            packed[place] ^= bit
            return struct.unpack("<d", packed)[0]
        return chr(ord(value[0]) ^ 1) + value[1:] if isinstance(value, str) else value

    return damage


DAMAGES = {
    "nan": put(math.nan),
    "inf": put(math.inf),
    "-1": put(-1),
    "-5": put(-5),
    "2**62": put(2**62),
    "10**400": lambda value: value if isinstance(value, torch.Tensor) else 10**400,
    "x": lambda value: "x",
    "None": lambda value: None,
    "mapping": lambda value: {},
    "shape": lambda value: torch.cat([value, value[:1]]) if isinstance(value, torch.Tensor) else torch.zeros(2),
    "matrix": lambda value: value[None] if isinstance(value, torch.Tensor) else [value],
    "float32": lambda value: value.float() if isinstance(value, torch.Tensor) else value,
    "removed": lambda value: REMOVED,
    "low bit": flip(0, 1),
    "high bit": flip(7, 0x40),
}


def damaged(state, path, damage):
    """A copy of the state with one damage; None if it is none there."""
    state = copy.deepcopy(state)
    parent = state
    for name in path[:-1]:
        parent = parent[name]
    old = parent[path[-1]]
    new = DAMAGES[damage](old)
    if new is REMOVED:
        del parent[path[-1]]
    elif same(new, old):
        return None
    else:
        parent[path[-1]] = new
    return state


def all_damages(state, every):
    """Each place with its damages, or one of ``every`` so many."""
    cases = [(path, damage) for path in paths(state) for damage in DAMAGES]
    for path, damage in cases[::every]:
        if (changed := damaged(state, path, damage)) is not None:
            yield path, damage, changed


def names_key(message, path):
    """Whether a message names the last key of a path, or for an element of a list the list."""
    key = [name for name in path if isinstance(name, str)][-1]
    other_words = {"base": "reference", "stream_version": "version", "label_check": "label check"}
    return key in message or other_words.get(key, key) in message


# -- tests ---------------------------------------------------------------------------------------------


EVERY = pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])


@EVERY
@pytest.mark.parametrize("name", OWNERS)
def test_damaged_state_is_refused(name, every):
    """Each leaf with each damage: refused with the key's name and nothing changed, or good to go on with."""
    make, train, save, load = OWNERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        owner, wrong, num_refused = make(), [], 0
        train(owner, 10)
        state = save(owner)
        owner = make()
        train(owner, 7)
        load(owner, save(owner))
        before = save(owner)
        for path, damage, changed in all_damages(state, every):
            try:
                load(owner, changed)
            except ValueError as error:
                num_refused += 1
                if not names_key(str(error), path) or not same(save(owner), before):
                    wrong.append((path, damage, str(error)))
            except Exception as error:
                wrong.append((path, damage, repr(error)))
            else:
                try:
                    train(owner, 6)
                except Exception as error:
                    wrong.append((path, damage, "goes on", repr(error)))
                owner = make()
                load(owner, before)
        load(owner, state)
    assert wrong == []
    assert num_refused > 40 / every


def fitted_callback():
    """A callback in the middle of a fit, with draws in flight that a later one has overtaken, and waiting reports."""
    fair = moving(resume="continue")
    fit(Weighted(), loader(), fair, max_steps=6)
    for _, _ in zip(range(3), fair.sampler, strict=False):
        pass
    fair.sampler.report(fair.sampler.controller.in_flight[-1])  # it has overtaken the others
    fair._run.loader = SimpleNamespace(restart=False)
    return fair


@EVERY
def test_damaged_callback_state_is_refused(every):
    """No damage of the callback's state is taken over: what no check finds, the checksum does."""
    fair = fitted_callback()
    state = fair.state_dict()
    state["label_check"]["evidence"] = {}
    assert len(state["sampler"]["controller"]["in_flight"]) == 2
    assert len(state["sampler"]["controller"]["reports"]["waiting"]) == 6
    fair.load_state_dict(state)
    before, wrong, by_checksum = fair.state_dict(), [], 0
    for path, damage, changed in all_damages(state, every):
        message = None
        try:
            fair.load_state_dict(changed)
        except ValueError as error:
            message = str(error)
        is_right = message and RESTART in message and (names_key(message, path) or "checksum must be" in message)
        by_checksum += "checksum must be" in (message or "")
        if not is_right or not same(fair.state_dict(), before):
            wrong.append((path, damage, message))
    assert wrong == []
    assert 0 < by_checksum < 200


def saved(tmp_path, **settings):
    """The path of a checkpoint with draws in flight."""
    path = tmp_path / "saved.ckpt"
    fit(Weighted(), loader(num_workers=2), moving(**settings), max_steps=6).save_checkpoint(path)
    return path


@pytest.mark.slow
def test_flipped_bit_in_file(tmp_path):
    """A bit of a number that flips in the file is noticed, and the model can be kept."""
    path = saved(tmp_path)
    mix = torch.load(path, weights_only=True)["callbacks"]["FairSampling"]["sampler"]["controller"]["loss_score"]
    content = bytearray(path.read_bytes())
    place = content.find(mix.numpy().tobytes())
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"checksum must be \d+, got \d+\. Resume from .* {re.escape(RESTART)}"):
        fit(Weighted(), loader(), moving(), ckpt=path)
    fit(module := Weighted(), loader(), moving(resume="restart"), ckpt=path, max_epochs=2)
    assert len(module.steps) == 20


@pytest.mark.slow
def test_damaged_checkpoint(tmp_path):
    """Every key in turn, with one of the damages: the fit says so, and with ``"restart"`` it goes on."""
    path = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["FairSampling"]
    cases = [(place, list(DAMAGES)[i % len(DAMAGES)]) for i, place in enumerate(paths(state))]
    cases = [(place, damage) for place, damage in cases if damaged(state, place, damage) is not None]
    assert len(cases) > 60
    for place, damage in cases:
        changed = damaged(state, place, damage)
        torch.save({**checkpoint, "callbacks": {"FairSampling": changed}}, path)
        with pytest.raises(ValueError, match=re.escape(RESTART)) as error:
            fit(Weighted(), loader(), moving(), ckpt=path)
        assert names_key(str(error.value), place) or "checksum must be" in str(error.value)
        fair = moving(resume="restart")
        fit(module := Weighted(), loader(), fair, ckpt=path, max_epochs=2, limit_train_batches=2)
        assert len(module.steps) == 2
        assert not same(fair.state_dict(), state)


# -- checksum ------------------------------------------------------------------------------------------


def test_checksum_survives_the_usual_ways(tmp_path):
    """Saved and loaded by torch and by Fabric, moved, copied, with another order of its keys."""
    state = fitted_callback().state_dict()
    expected = state.pop("checksum")
    torch.save(state, tmp_path / "torch.pt")
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.save(tmp_path / "fabric.ckpt", {"fair": state})
    for each in (
        torch.load(tmp_path / "torch.pt", weights_only=True, map_location="cpu", mmap=True),
        torch.load(tmp_path / "torch.pt", weights_only=True, map_location=lambda storage, device: storage.clone()),
        fabric.load(tmp_path / "fabric.ckpt")["fair"],
        move_data_to_device(state, torch.device("cpu")),
        copy.deepcopy(state),
        dict(reversed(state.items())),
    ):
        assert checksum(each) == expected


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        (0, None),
        ("1", 1),
        ([1, [2]], [[1], 2]),
        ([], {}),
        ({"a": 1}, [["a", 1]]),
        ({"a": 1}, {"b": 1}),
        (0.1, math.nextafter(0.1, 1)),
        (0.0, -0.0),
        (torch.zeros(2), torch.zeros(2, 1)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int32)),
        (torch.zeros(1), 0.0),
    ],
)
def test_checksum_tells_states_apart(a, b):
    assert checksum({"key": a}) != checksum({"key": b})
    assert checksum(a) == checksum(copy.deepcopy(a))


def test_own_state_is_taken_at_any_settings():
    """A trained mix that a late correction carries below 0, long delays and large gains."""

    def make():
        target = Shift(Step(0.0, 1.0, at=20), start=[0.5, 0.5], end=[1.0, 0.0])
        return FeedbackBatchSampler([0, 1] * 50, 8, 100, FeedbackController(2, target, feedback_delay=16))

    sampler, lowest = make(), 0.0
    for indices, _ in zip(sampler, range(40), strict=False):
        sampler.controller.step_update([0 for index in indices if index % 2 == 0])  # class 1 was filtered out
        lowest = min(lowest, sampler.controller.trained_mix.min())
        other = make()
        other.restore(sampler.capture())
        assert same(other.capture(), sampler.capture())
    assert lowest < 0

    def large():
        settings = {"feedback": "validation", "feedback_to": "objective", "reference": "uniform", "feedback_gain": 1e8}
        return FeedbackController(2, feedback_delay=2**31 - 1, **settings)

    controller = large()
    controller.report_validation([0.1, 0.9])
    controller.step_update([0, 1])
    large().load_state_dict(controller.state_dict())
