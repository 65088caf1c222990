"""Every kind of training loader is made fair, and every sample gets the weight of its own draw.

``pytest -q -m "" tests/e2e/test_training_loaders.py`` counts the batches with the weights of another draw.
"""

import itertools
import time
from collections import Counter

import lightning
import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning_helpers import (
    BATCH,
    BATCHES,
    Indexed,
    KeysAndNames,
    Weighted,
    fit,
    in_any_order,
    loader,
    movement,
    moving,
    own_draw,
    recorded_draws,
    trainer,
    warnings_about,
    wrong_steps,
)
from loader_runs import Adjusted, Chained, Delegating, KeepsWorkers, Prefetcher, Wrapper, in_bulk
from packaging.version import Version
from torch.utils.data import DataLoader, IterableDataset, default_collate

from lightning_fair import FairDataModule

PAIRS: Counter = Counter()


class Uneven(Indexed):
    """Samples that take longer in one of the workers, so that its batches are late."""

    def __getitem__(self, index):
        info = torch.utils.data.get_worker_info()
        if info is not None and info.id == 0:
            time.sleep(0.004)
        return super().__getitem__(index)


class BatchFetched(Indexed):
    """A data set that fetches a batch at a time."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Own(DataLoader):
    """A subclass with its own constructor."""

    def __init__(self, num_workers):
        super().__init__(Indexed(), batch_size=BATCH, shuffle=True, num_workers=num_workers)


class Prefetching(Own):
    """A subclass whose iterator fetches one batch ahead."""

    def __iter__(self):
        batches = super().__iter__()
        ahead = next(batches)
        for batch in batches:
            yield ahead
            ahead = batch
        yield ahead


def stateful(**settings):
    module = pytest.importorskip("torchdata.stateful_dataloader")
    return module.StatefulDataLoader(Indexed(), batch_size=BATCH, shuffle=True, **settings)


def dropping(samples):
    """Leave out every seventh sample; the batch must still be matched with its draw."""
    return default_collate([sample for sample in samples if sample[2] % 7])


def sometimes_none(samples):
    return None if samples[0][2] % 3 == 0 else default_collate(samples)


def mark_worker(worker_id):
    torch.utils.data.get_worker_info().dataset.marked = worker_id


def other():
    """Return another loader, with five batches."""
    return DataLoader(Indexed((10, 10)), batch_size=4)


def twice_as_long():
    return DataLoader(Indexed(), batch_size=BATCH // 2)


class Among(Weighted):
    """Trains on the batches of one of several loaders."""

    key = "fair"

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        mine = batch[self.key]
        if mine is None:  # the fair loader is exhausted
            return torch.zeros((), requires_grad=True)
        return super().training_step(mine, batch_idx)


class Stream(IterableDataset):
    """A data set without length, for which Lightning fetches one batch ahead."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(torch.zeros(self.batches))


def stream(batches):
    return DataLoader(Stream(batches), batch_size=1)


class NoLength(Own):
    """A subclass without a length."""

    def __len__(self):
        raise TypeError("no length")


class Planned(Weighted):
    """Asks for the number of steps before training, so Lightning creates the loaders early."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OwnLoader(Weighted):
    def train_dataloader(self):
        return loader(num_workers=2)


WORKERS = {
    "no workers": {},
    "1 worker": {"num_workers": 1},
    "2 workers": {"num_workers": 2},
    "2 workers that stay": {"num_workers": 2, "persistent_workers": True},
    "2 workers far ahead": {"num_workers": 2, "prefetch_factor": 4},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn"},
    "forkserver": {"num_workers": 1, "multiprocessing_context": "forkserver"},
    "generator": {"num_workers": 1, "generator": torch.Generator()},
    "worker_init_fn": {"num_workers": 1, "worker_init_fn": mark_worker},
}

# name: (data, module, arguments of the callback, arguments of the Trainer, steps of one epoch)
INSIDE = {
    "chain": itertools.chain,
    "chain of a list": lambda data: itertools.chain.from_iterable([data]),
    "chain of a class": lambda data: Chained([data]),
    "wrapper": Wrapper,
    "wrapper of a wrapper": lambda data: Wrapper(Prefetcher(data)),
    "prefetcher": Prefetcher,
    "with the class of the loader inside": Delegating,
}
KINDS = {
    **{name: (lambda s=s: loader(**s), Weighted, {}, {}, BATCHES) for name, s in WORKERS.items()},
    **{
        f"in any order, {name}": (
            lambda s=s: loader(Uneven(), num_workers=2, in_order=False, **s),
            Weighted,
            {},
            {},
            BATCHES,
        )
        for name, s in {
            "fork": {},
            "stay": {"persistent_workers": True},
            "spawn": {"multiprocessing_context": "spawn"},
            "worker_init_fn": {"worker_init_fn": mark_worker},
        }.items()
    },
    "in any order, fetched together": (
        lambda: loader(BatchFetched(), num_workers=2, in_order=False), Weighted, {}, {}, BATCHES,
    ),
    "in any order, samples dropped": (
        lambda: loader(Uneven(), num_workers=2, in_order=False, collate_fn=dropping), Weighted, {}, {}, BATCHES,
    ),
    "in any order, some None": (
        lambda: loader(Uneven(), num_workers=2, in_order=False, collate_fn=sometimes_none), Weighted, {}, {}, None,
    ),
    "in any order, stateful": (lambda: stateful(num_workers=2, in_order=False), Weighted, {}, {}, BATCHES),
    "stateful": (stateful, Weighted, {}, {}, BATCHES),
    "stateful, 2 workers": (lambda: stateful(num_workers=2), Weighted, {}, {}, BATCHES),
    "own class": (lambda: Own(2), Weighted, {}, {}, BATCHES),
    "own iterator": (lambda: Prefetching(2), Weighted, {}, {}, BATCHES),
    "samples dropped": (lambda: loader(num_workers=2, collate_fn=dropping), Weighted, {}, {}, BATCHES),
    "some None": (lambda: loader(num_workers=2, collate_fn=sometimes_none), Weighted, {}, {}, None),
    "drop_last": (lambda: loader(batch_size=7, drop_last=True), Weighted, {}, {}, 22),
    "in bulk": (in_bulk, Weighted, {}, {}, BATCHES),
    "in bulk, 2 workers": (lambda: in_bulk(num_workers=2), Weighted, {}, {}, BATCHES),
    "in any order, in bulk": (lambda: in_bulk(num_workers=2, in_order=False), Weighted, {}, {}, BATCHES),
    "in bulk, some of the batches": (
        lambda: in_bulk(num_workers=2), Weighted, {}, {"limit_train_batches": 6}, 6,
    ),
    **{
        f"{name}, {workers} workers": (lambda k=kind, w=workers: k(loader(num_workers=w)), Weighted, {}, {}, BATCHES)
        for name, kind in INSIDE.items()
        for workers in (0, 2)
    },
    "prefetcher, some of the batches": (
        lambda: Prefetcher(loader(num_workers=2)), Weighted, {}, {"limit_train_batches": 6}, 6,
    ),
    "prefetcher, key of a dict": (
        lambda: {"other": other(), "fair": Prefetcher(loader(num_workers=2))},
        Among, {"dataloader": "fair"}, {}, BATCHES,
    ),
    **{
        f"keeps its workers{' from the first epoch on' * later}, {workers} workers{', cut short' if limit else ''}": (
            lambda w=workers, t=later: KeepsWorkers(Indexed(), BATCH, shuffle=True, num_workers=w, at_once=not t),
            Weighted, {}, {"limit_train_batches": limit}, limit or BATCHES,
        )
        for later in (False, True)
        for workers in (0, 2)
        for limit in (None, 6)
    },
    "module's own": (lambda: None, OwnLoader, {}, {}, BATCHES),
    "data module": (lambda: KeysAndNames(num_workers=2), Weighted, {}, {}, BATCHES),
    "fair data module": (lambda: FairDataModule(KeysAndNames(num_workers=2)), Weighted, {}, {}, BATCHES),
    "reloaded": (
        lambda: loader(num_workers=2), Weighted, {}, {"reload_dataloaders_every_n_epochs": 1}, BATCHES,
    ),
    "some of the batches": (lambda: loader(num_workers=2), Weighted, {}, {"limit_train_batches": 6}, 6),
    "half of the batches": (lambda: loader(num_workers=2), Weighted, {}, {"limit_train_batches": 0.5}, BATCHES // 2),
    "accumulated": (lambda: loader(num_workers=2), Weighted, {}, {"accumulate_grad_batches": 3}, BATCHES),
    "steps known early": (lambda: loader(num_workers=2), Planned, {}, {}, BATCHES),
    "key of a dict": (
        lambda: {"other": other(), "fair": loader(num_workers=2)}, Among, {"dataloader": "fair"}, {}, BATCHES,
    ),
    "in any order, key of a dict": (
        lambda: {"fair": loader(Uneven(), num_workers=2, in_order=False), "other": other()},
        Among, {"dataloader": "fair"}, {}, BATCHES,
    ),
    "reloaded, key of a dict": (
        lambda: {"other": other(), "fair": loader(num_workers=2)},
        Among, {"dataloader": "fair"}, {"reload_dataloaders_every_n_epochs": 1}, BATCHES,
    ),
    "shortest ends the epoch": (
        lambda: CombinedLoader({"fair": loader(num_workers=2), "other": other()}, "min_size"),
        Among, {"dataloader": "fair"}, {}, 5,
    ),
    "longest ends the epoch": (
        lambda: CombinedLoader({"fair": loader(num_workers=2), "other": twice_as_long()}, "max_size"),
        Among, {"dataloader": "fair"}, {}, BATCHES,
    ),
    **{
        f"with a stream, {name}, {workers} workers": (
            lambda m=mode, b=batches, w=workers: CombinedLoader({"other": stream(b), "fair": loader(num_workers=w)}, m),
            Among, {"dataloader": "fair"}, {}, steps,
        )
        for workers in (0, 2)
        for name, mode, batches, steps in (
            ("the longer one", "max_size_cycle", BATCHES + 5, BATCHES + 5),
            ("the shorter one", "max_size_cycle", 5, BATCHES),
            ("padded", "max_size", BATCHES + 5, BATCHES),
            ("cut short", "min_size", 5, 5),
        )
    },
    "no length": (lambda: NoLength(2), Weighted, {"steps_per_epoch": BATCHES}, {}, BATCHES),
    # Corrected in the logits: the offset of a class is the logarithm of p / target.
    **{
        f"logits, {name}": (make, Adjusted, {"correction": "logits"}, {}, BATCHES)
        for name, make in {
            "no workers": loader,
            "samples dropped": lambda: loader(num_workers=2, collate_fn=dropping),
            "prefetcher, 2 workers": lambda: Prefetcher(loader(num_workers=2)),
        }.items()
    },
    "in any order, logits": (
        lambda: loader(Uneven(), num_workers=2, in_order=False), Adjusted, {"correction": "logits"}, {}, BATCHES,
    ),
    "twice in an epoch": (
        lambda: {"fair": loader(num_workers=2), "other": twice_as_long()},
        Among, {"dataloader": "fair"}, {}, 2 * BATCHES,
    ),
}  # fmt: skip


FAST = {
    "no workers",
    "stateful",
    "drop_last",
    "in bulk",
    "logits, no workers",
    "keeps its workers, 0 workers",
    *(f"{name}, 0 workers" for name in INSIDE),
    "with a stream, the longer one, 0 workers",
    "with a stream, cut short, 0 workers",
}


def _marks(name):
    slow = [] if name in FAST else [pytest.mark.slow]
    return [*slow, in_any_order] if name.startswith("in any order") else slow


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in KINDS])
def test_sample_has_weight_of_its_draw(name):
    """Each step has the weights, or the offsets of the logits, of its own draw."""
    data, kind, settings, of_trainer, steps = KINDS[name]
    module, fair = kind(), moving(**settings)
    with recorded_draws() as draws:
        fit(module, data(), fair, **{"max_epochs": 2, **of_trainer})
    wrong = wrong_steps(module.steps, draws)
    PAIRS.update(right=len(module.steps) - wrong, wrong=wrong)
    assert wrong == 0
    assert movement(draws) > 0.01
    draw_ids = [own_draw(step, draws) for step in module.steps]
    assert len(set(draw_ids)) == len(draw_ids)  # no draw is trained on twice
    if steps is not None:
        assert len(module.steps) == 2 * steps
        assert sorted(draw_ids) == list(range(2 * steps))  # and none is lost


def test_total(capsys):
    """Print the number of batches with the weights of another draw."""
    if not PAIRS:
        pytest.skip("the tests above were not run")
    with capsys.disabled():
        print(f"\n{PAIRS['wrong']} of {PAIRS.total()} batches had weights that were not their own draw's")
    assert PAIRS["wrong"] == 0


@pytest.mark.slow
@in_any_order
def test_in_order_false_changes_the_order():
    """Otherwise the tests of in_order=False would show nothing."""
    module = Weighted()
    with recorded_draws() as draws:
        fit(module, loader(Uneven(), num_workers=2, in_order=False), moving(), max_epochs=2)
    draw_ids = [own_draw(step, draws) for step in module.steps]
    assert draw_ids != sorted(draw_ids)


@pytest.mark.slow
@in_any_order
def test_worker_init_fn_sees_its_dataset():
    """A ``worker_init_fn`` may read and change the data set of its worker, with tagged batches too."""

    class Marked(Indexed):
        marked = None

        def __getitem__(self, index):
            assert self.marked == torch.utils.data.get_worker_info().id
            return super().__getitem__(index)

    data = loader(Marked(), num_workers=2, in_order=False, worker_init_fn=mark_worker)
    fit(module := Weighted(), data, moving())
    assert len(module.steps) == BATCHES


@pytest.mark.parametrize("chosen", [None, "third", 2, -1])
def test_dataloader_must_name_one_of_several(chosen):
    with pytest.raises(ValueError, match=r"one training DataLoader.*'fair', 'other'.*dataloader='fair'"):
        fit(Among(), {"fair": loader(), "other": other()}, moving(dataloader=chosen))


def test_dataloader_must_name_a_single_loader():
    with pytest.raises(ValueError, match=r"dataloader='fair' is none that can be chosen: 0\. .*dataloader=0"):
        fit(Weighted(), loader(), moving(dataloader="fair"))
    fit(module := Weighted(), loader(), moving(dataloader=0))
    assert len(module.steps) == BATCHES


def test_other_loaders_are_not_replaced():
    theirs = other()

    class Watches(L.Callback):
        def on_train_start(self, trainer, pl_module):
            self.seen = trainer.train_dataloader["other"]

    watches = Watches()
    fit(Among(), {"fair": loader(), "other": theirs}, moving(dataloader="fair"), watches)
    assert watches.seen is theirs


def test_combined_loader_can_be_reused():
    """The user's CombinedLoader does not change, although Lightning writes into it."""
    theirs = CombinedLoader({"fair": loader(), "other": other()}, "min_size")
    before = dict(theirs.iterables)
    for _ in range(2):
        fit(module := Among(), theirs, moving(dataloader="fair"), reload_dataloaders_every_n_epochs=1, max_epochs=2)
        assert len(module.steps) == 10
        assert theirs.iterables == before


def test_same_loader_under_two_keys():
    both = loader()
    fit(module := Among(), {"first": both, "fair": both}, fair := moving(dataloader="fair"))
    assert len(module.steps) == fair.controller.draws == BATCHES
    assert sum(len(step.indices) for step in module.steps) == len(Indexed())


# -- tuning ----------------------------------------------------------------------------------------------


class Sized(L.LightningDataModule):
    def __init__(self, workers=0):
        super().__init__()
        self.batch_size, self.workers = 2, workers

    def train_dataloader(self):
        return loader(batch_size=self.batch_size, num_workers=self.workers)

    def val_dataloader(self):  # Lightning's BatchSizeFinder asks for it
        return loader(batch_size=self.batch_size, shuffle=False)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batch_size_search_leaves_no_trace(workers, tmp_path):
    """Lightning tries sizes 2, 4, 8 during ``fit``, and returns to the start."""
    module, fair, data = Weighted(), moving(), Sized(workers)
    finder = BatchSizeFinder(steps_per_trial=3, init_val=2, max_trials=3)
    with recorded_draws() as draws, warnings_about("starts over") as warned:
        run = trainer(fair, finder, default_root_dir=tmp_path)
        run.fit(module, datamodule=data)
    size = data.batch_size
    assert size in (8, 16)  # versions of Lightning count the trials differently
    assert fair.sampler.batch_size == size
    assert fair.controller.draws == run.global_step == len(Indexed()) // size
    assert sum(fair.sampler.drawn) == run.global_step * size
    trained = [step for step in module.steps if len(step.indices) == size][-run.global_step :]
    assert wrong_steps(trained, {n: draws[n] for n in range(run.global_step)}) == 0
    assert warned == []


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_learning_rate_search_leaves_no_trace(workers, tmp_path):
    fresh, searched = [], []
    if Version(lightning.__version__) < Version("2.5.5"):
        pytest.skip("this Lightning continues the epoch that the search began, with any loader")
    for batches_of, callbacks in ((fresh, []), (searched, [LearningRateFinder(num_training_steps=15)])):
        fair = moving(lambda2=0.0, feedback_delay=5)
        fit(module := Weighted(), loader(num_workers=workers), fair, *callbacks, default_root_dir=tmp_path)
        batches_of += [step.indices for step in module.steps[-BATCHES:]]
        assert fair.controller.draws == BATCHES
    assert searched == fresh


# -- the feedback delay ----------------------------------------------------------------------------------


def batches(workers, **settings):
    module = Weighted()
    with recorded_draws() as draws, warnings_about("is less than the") as warned:
        fit(module, loader(num_workers=workers), fair := moving(**settings), max_epochs=3)
    probs = np.array([draws[own_draw(step, draws)][0] for step in module.steps])
    return [step.indices for step in module.steps], probs, [step.weights for step in module.steps], fair, warned


@pytest.mark.slow
def test_batches_do_not_depend_on_number_of_workers():
    indices, probs, weights, fair, _ = batches(0)
    assert fair.controller.feedback_delay == 16
    assert np.ptp(probs[20:], axis=0).max() > 0.01
    for workers in (1, 2, 4):
        others = batches(workers)
        assert others[0] == indices
        assert (others[1] == probs).all()
        assert all((a == b).all() for a, b in zip(others[2], weights, strict=True))


@pytest.mark.slow
def test_feedback_delay_follows_prefetching():
    fit(Weighted(), loader(num_workers=2, prefetch_factor=10), fair := moving())
    assert fair.controller.feedback_delay == 21


@pytest.mark.slow
def test_short_feedback_delay_warns():
    with warnings_about("less than the 5 batches after which losses are known") as warned:
        fit(Weighted(), loader(num_workers=2), fair := moving(feedback_delay=3), limit_train_batches=2)
    assert len(warned) == 1
    assert fair.controller.feedback_delay == 3


# -- LightningCLI ----------------------------------------------------------------------------------------


def test_lightning_cli_creates_the_callback(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  max_epochs: 1\n  accelerator: cpu\n  devices: 1\n  logger: false\n  enable_checkpointing: false\n"
        "  enable_progress_bar: false\n  enable_model_summary: false\n  callbacks:\n"
        "    - class_path: lightning_fair.FairSampling\n      init_args:\n"
        "        alpha:\n          class_path: lightning_fair.schedules.Linear\n"
        "          init_args: {start: 0.0, end: 8.0, duration: 10}\n"
        "        labels: scan\n        target_probs: [0.4, 0.3, 0.2, 0.1]\n"
        "        max_weight: 20\n        class_names: [a, b, c, d]\n"
    )
    cli = LightningCLI(Weighted, Sized, args=["fit", "--config", str(config)], save_config_callback=None)
    (fair,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "FairSampling"]
    assert fair.sampler.drawn.sum() == len(Indexed())
    assert fair.settings.max_weight == 20
    assert np.allclose(fair.controller.q, [0.4, 0.3, 0.2, 0.1])
