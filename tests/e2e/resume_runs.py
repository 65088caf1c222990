"""Runs that are cut and resumed, each in a process of its own, and compared with the uninterrupted run.

``python tests/e2e/resume_runs.py`` prints the count: scenario, cuts, and how many of the resumed runs are exact.
"""

from __future__ import annotations

import logging
import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning_helpers import BATCH, Draws, Indexed, Plain, Weighted, loader, moving, own_draw, recorded_draws
from lightning_helpers import Step as TrainingStep
from lightning_helpers import trainer as quiet_trainer
from loader_runs import Bulk, KeepsWorkers, Prefetcher, in_bulk
from tag_helpers import Tagged, Tagger
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from lightning_fair import FairDataModule, FairSampling, FeedbackBatchSampler, FeedbackController
from lightning_fair.integration.callback import find_callback
from lightning_fair.schedules import Linear, Shift, Step

COUNTS = (28, 10, 6, 4)  # so few that classes are used up and begin again, within batches too
PER_EPOCH = sum(COUNTS) // BATCH
EPOCHS = 2
BATCHES = EPOCHS * PER_EPOCH
AT_ONCE = 2  # processes side by side

Kind = Literal["checkpoint", "exception", "kill"]


# -- what is trained -------------------------------------------------------------------------------------------


class _Cut:
    """Cuts the run inside the step after ``stop`` batches, and counts the batches of the run before a resume."""

    def __init__(self, stop: int | None = None, kind: Kind = "checkpoint", **settings: Any) -> None:
        super().__init__(**settings)
        self.stop, self.kind, self.before = stop, kind, 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if self.before + len(self.steps) == self.stop:
            if self.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise InterruptedError("cut inside the training step")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained on"] = self.before + len(self.steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.before = checkpoint["trained on"]


class Learner(_Cut, Weighted):
    pass


class PlainLearner(_Cut, Plain):
    pass


class KnowsItsLength(Learner):
    """Asks for the number of steps before training, so the loader is made before the checkpoint is restored."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class BringsItsOwn(Learner):
    """The mixin installs the callback."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.fair_sampling = steering()


class Corrected(Learner):
    """Serves every correction."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.adjusted_logits(self.net(x)), y, reduction="none")


class Validated(Corrected):
    """Logs the recall of each class at validation."""

    def on_validation_epoch_start(self) -> None:
        self.hits = torch.zeros(2, len(COUNTS))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y, _ = batch
        hits = (self.net(x).argmax(dim=1) == y).float()
        self.hits.index_add_(1, y, torch.stack([hits, torch.ones_like(hits)]))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/recall/{c}": recall for c, recall in enumerate(self.hits[0] / self.hits[1])})


class LearnsTags(_Cut, Tagger):
    """Its samples have several labels."""


class OfTwoLoaders(Learner):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        return super().training_step(batch["a"], batch_idx)


class RestoresLate(SingleDeviceStrategy):
    """Restores the callbacks after the loaders are made, as FSDP and DeepSpeed do."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True


def steering(**settings: Any) -> FairSampling:
    return moving(**{"seed": 5, "feedback_delay": 5, **settings})


# -- what it is trained on -------------------------------------------------------------------------------------


class Uneven(Indexed):
    """Samples that take longer in one worker than in the other, so that other batches overtake its batches."""

    def __getitem__(self, index: int) -> Any:
        info = torch.utils.data.get_worker_info()
        if info is not None and info.id == 0:
            time.sleep(0.004)
        return super().__getitem__(index)


class Small(L.LightningDataModule):
    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = workers

    def train_dataloader(self) -> DataLoader:
        return small(num_workers=self.workers)


def small(data: type[Indexed] = Indexed, **settings: Any) -> DataLoader:
    return loader(data(COUNTS), **settings)


def usual(**settings: Any) -> Callable[[int], dict[str, Any]]:
    """Return a function from the number of workers to the arguments of ``fit``, with a plain loader."""
    return lambda workers: {"train_dataloaders": small(num_workers=workers, **settings)}


def persistent(workers: int) -> dict[str, Any]:
    return {"train_dataloaders": small(num_workers=workers, persistent_workers=True)}


def bulk(workers: int) -> dict[str, Any]:
    return {"train_dataloaders": in_bulk(Bulk(COUNTS), num_workers=workers)}


def prefetcher(workers: int) -> dict[str, Any]:
    return {"train_dataloaders": Prefetcher(small(num_workers=workers))}


def keeps_workers(workers: int) -> dict[str, Any]:
    return {"train_dataloaders": KeepsWorkers(Indexed(COUNTS), BATCH, shuffle=True, num_workers=workers)}


def tagged(workers: int) -> dict[str, Any]:
    return {"train_dataloaders": loader(Tagged(sum(COUNTS)), num_workers=workers)}


def stateful(workers: int) -> dict[str, Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return {"train_dataloaders": StatefulDataLoader(Indexed(COUNTS), batch_size=BATCH, num_workers=workers)}


def with_validation(workers: int) -> dict[str, Any]:
    return {**usual()(workers), "val_dataloaders": loader(Indexed((4, 4, 4, 4)), shuffle=False)}


def beside(batches: int) -> Callable[[int], dict[str, Any]]:
    """Return such a function, with a loader of ``batches`` batches beside the fair one."""
    other = Indexed((batches * BATCH,))
    return lambda workers: {"train_dataloaders": {"b": loader(other), "a": small(num_workers=workers)}}


def dropping(samples: list[Any]) -> Any:
    """Leave out every sample whose index is a multiple of three."""
    return default_collate([sample for sample in samples if sample[2] % 3])


# -- the scenarios ---------------------------------------------------------------------------------------------


_USUAL = usual()


@dataclass(frozen=True)
class Scenario:
    """A way to train, and the number of batches after which it is cut."""

    cuts: int = BATCHES
    workers: int = 0
    data: Callable[[int], dict[str, Any]] = _USUAL
    module: Callable[..., Plain] = Learner
    fair: Callable[[], FairSampling | None] = steering
    trainer: Mapping[str, Any] = field(default_factory=dict)
    saves: Mapping[str, Any] = field(default_factory=lambda: {"every_n_train_steps": 1})
    kind: Kind = "checkpoint"
    resume_workers: int | None = None
    any_order: bool = False
    each: int = 6  # resumed runs of a process; all that a run is made of is new in any case
    needs: str | None = None


def _at_epoch_end(**settings: Any) -> dict[str, Any]:
    return {"saves": {"every_n_epochs": 1, "save_on_train_epoch_end": True}, "trainer": {"max_epochs": 3}, **settings}


# Validations after steps 4 and 10. Lightning would skip one between a checkpoint and the next step, so none is there.
_VALIDATED = {
    "module": Validated,
    "data": with_validation,
    "trainer": {"val_check_interval": 4, "num_sanity_val_steps": 1},
}
_BY_EPOCH = {"max_epochs": 3, "limit_train_batches": 4}
_SHIFT_BY_EPOCH = Shift(Step(0.0, 1.0, at=1, unit="epoch"), start="prior")
_TORCHDATA = {"data": stateful, "needs": "torchdata.stateful_dataloader"}

SCENARIOS: dict[str, Scenario] = {
    "every step": Scenario(each=1),
    "every step, 2 workers": Scenario(workers=2, each=1),
    "persistent workers": Scenario(workers=2, data=persistent),
    "stateful loader": Scenario(**_TORCHDATA),
    "stateful loader, 2 workers": Scenario(workers=2, **_TORCHDATA),
    "read in bulk": Scenario(data=bulk),
    "read in bulk, 2 workers": Scenario(workers=2, data=bulk),
    "prefetcher, 2 workers": Scenario(workers=2, data=prefetcher),
    "class that keeps its workers": Scenario(workers=2, data=keeps_workers),
    "any order, 2 workers": Scenario(workers=2, data=usual(data=Uneven, in_order=False), any_order=True),
    "end of every epoch": Scenario(3, **_at_epoch_end()),
    "end of every epoch, 2 workers": Scenario(3, workers=2, **_at_epoch_end()),
    "end of every validation": Scenario(
        6,
        workers=2,
        data=with_validation,
        trainer={"val_check_interval": 2, "num_sanity_val_steps": 1},
        saves={"every_n_epochs": 1, "save_on_train_epoch_end": False},
    ),
    "accumulate_grad_batches": Scenario(6, workers=2, trainer={"accumulate_grad_batches": 2, "limit_train_batches": 5}),
    "limit_train_batches=4": Scenario(workers=2, trainer=_BY_EPOCH),
    "limit_train_batches=0.7": Scenario(workers=2, trainer={**_BY_EPOCH, "limit_train_batches": 0.7}),
    "max_steps": Scenario(13, workers=2, trainer={"max_steps": 13, "max_epochs": -1}),
    "reload every epoch": Scenario(workers=2, trainer={"reload_dataloaders_every_n_epochs": 1}),
    "estimated_stepping_batches": Scenario(workers=2, module=KnowsItsLength),
    "restored after the strategy's set-up": Scenario(
        workers=2, module=KnowsItsLength, trainer={"strategy": "restores late"}
    ),
    "FairDataModule": Scenario(
        workers=2,
        fair=lambda: None,
        data=lambda workers: {"datamodule": FairDataModule(Small(workers), fair=steering())},
    ),
    "installed by the mixin": Scenario(workers=2, fair=lambda: None, module=BringsItsOwn),
    "without the mixin": Scenario(workers=2, module=PlainLearner, fair=lambda: steering(lambda2=0.0)),
    "without loss feedback": Scenario(workers=2, fair=lambda: steering(lambda2=0.0)),
    "beside a longer loader": Scenario(
        2 * (PER_EPOCH + 3),
        workers=2,
        data=beside(PER_EPOCH + 3),
        module=OfTwoLoaders,
        fair=lambda: steering(dataloader="a"),
    ),
    "beside a shorter loader": Scenario(
        workers=2, data=beside(3), module=OfTwoLoaders, fair=lambda: steering(dataloader="a")
    ),
    "target that moves": Scenario(
        workers=2, fair=lambda: steering(target_probs=Shift(Linear(0.0, 1.0, 12), start="prior"))
    ),
    "gain by epochs": Scenario(workers=2, fair=lambda: steering(alpha=Linear(2.0, 8.0, 2, unit="epoch"))),
    "target by epochs, cut short, 2 workers, then none": Scenario(
        workers=2, resume_workers=0, trainer=_BY_EPOCH, fair=lambda: steering(target_probs=_SHIFT_BY_EPOCH)
    ),
    "gain by epochs, cut short, no workers, then 2": Scenario(
        resume_workers=2,
        trainer=_BY_EPOCH,
        fair=lambda: steering(alpha=Linear(0.0, 8.0, 2, unit="epoch"), feedback_to="objective"),
    ),
    "target by epochs, cut short, validated, 2 workers, then none": Scenario(
        3,
        workers=2,
        resume_workers=0,
        module=Validated,
        data=with_validation,
        trainer={**_BY_EPOCH, "val_check_interval": 2},
        fair=lambda: steering(target_probs=_SHIFT_BY_EPOCH, feedback="val/recall", feedback_to="objective"),
        saves={"every_n_epochs": 1, "save_on_train_epoch_end": True},
    ),
    "long_tail": Scenario(
        workers=2,
        module=Corrected,
        fair=lambda: steering(preset="long_tail", target_probs="auto", max_repeats=3),
    ),
    "calibrated, a hook, losses to the objective": Scenario(
        module=PlainLearner,
        fair=lambda: steering(preset="calibrated", logits="net", feedback_to="objective"),
    ),
    "worst_class, validated within the epoch": Scenario(
        4,
        workers=2,
        fair=lambda: steering(preset="worst_class"),
        saves={"every_n_train_steps": 3},
        **_VALIDATED,
    ),
    "validation to the draw, a mix as reference": Scenario(
        kind="exception",
        fair=lambda: steering(reference=(0.3, 0.1, 0.2, 0.4), feedback="val/recall"),
        **_VALIDATED,
    ),
    "losses to the objective": Scenario(workers=2, fair=lambda: steering(feedback_to="objective", reference="prior")),
    "several labels": Scenario(module=LearnsTags, data=tagged, fair=lambda: steering(target_probs="sqrt")),
    "several labels, losses to the objective, 2 workers, then none": Scenario(
        module=LearnsTags,
        data=tagged,
        workers=2,
        resume_workers=0,
        kind="exception",
        fair=lambda: steering(target_probs="sqrt", feedback_to="objective", reference="prior"),
    ),
    "samples left out by collate_fn": Scenario(workers=2, data=usual(collate_fn=dropping)),
    "steps without a loss": Scenario(workers=2, module=lambda **cut: Learner(skip=(1, 4), **cut)),
    "exception in every batch": Scenario(kind="exception"),
    "exception in every batch, 2 workers": Scenario(workers=2, kind="exception"),
    # Before the second batch is trained on there is no checkpoint.
    "kill -9 in every batch": Scenario(BATCHES - 2, kind="kill", saves={"every_n_train_steps": 2}),
    "kill -9 in every batch, 2 workers": Scenario(
        BATCHES - 2, workers=2, kind="kill", saves={"every_n_train_steps": 2}
    ),
    "2 workers, then none": Scenario(workers=2, resume_workers=0),
    "no workers, then 2": Scenario(resume_workers=2),
    "feedback delay of the loader, then no workers": Scenario(
        4 * PER_EPOCH,
        workers=2,
        data=lambda workers: usual(**({"prefetch_factor": 9} if workers else {}))(workers),
        fair=lambda: steering(feedback_delay=None),
        trainer={"max_epochs": 4},
        resume_workers=0,
    ),
}


# -- faults that the comparison has to find --------------------------------------------------------------------


def _change_restored(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    restore = FeedbackBatchSampler.restore
    FeedbackBatchSampler.restore = lambda self, state: restore(  # type: ignore[method-assign]
        self, {**state, "controller": change(state["controller"])}
    )


def _no_controller() -> None:
    FeedbackController.load_state_dict = lambda self, state: None  # type: ignore[method-assign]


def _all_trained_on() -> None:
    _change_restored(lambda controller: {**controller, "draws": controller["made"]})


def _no_losses() -> None:
    _change_restored(lambda controller: {**controller, "reports": {**controller["reports"], "waiting": []}})


def _no_tilt() -> None:
    _change_restored(
        lambda controller: {
            **controller,
            "objective": {**controller["objective"], "tilt": torch.zeros(len(COUNTS), dtype=torch.float64)},
        }
    )


def _counted_at_delivery() -> None:
    save = FairSampling.state_dict

    def state_dict(self: FairSampling) -> dict[str, Any]:
        current, self._run.current = self._run.current, None
        if current is not None and self.sampler is not None:
            self.sampler.report(current.draw)
        return save(self)

    FairSampling.state_dict = state_dict  # type: ignore[method-assign]


def _no_optimizer() -> None:
    torch.optim.SGD.load_state_dict = lambda self, state: None  # type: ignore[method-assign, assignment]


FAULTS = {
    "controller not restored": _no_controller,
    "draws in flight counted as trained on": _all_trained_on,
    "losses on their way not restored": _no_losses,
    "moved objective not restored": _no_tilt,
    "counted at delivery": _counted_at_delivery,
    "optimizer not restored": _no_optimizer,
}


# -- one run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A run of a scenario in a process of its own."""

    scenario: str
    folder: Path
    ckpt: Path | None = None
    stop: int | None = None
    fault: str | None = None

    @property
    def answer(self) -> Path:
        return self.folder / "answer"


@dataclass
class Run:
    """The records of a run; ``before`` is the number of batches in the run that it resumes."""

    before: int
    steps: list[TrainingStep]
    draws: Draws
    callback: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    optimizer_steps: int

    @property
    def draw_ids(self) -> list[int]:
        """The number of each step's draw."""
        return [own_draw(step, self.draws) for step in self.steps]


def play(job: Job) -> Run:
    """Train with new objects, from a checkpoint or from the start."""
    scenario = SCENARIOS[job.scenario]
    if job.fault:
        FAULTS[job.fault]()
    workers = scenario.workers if job.ckpt is None or scenario.resume_workers is None else scenario.resume_workers
    module = scenario.module(stop=job.stop, kind=scenario.kind)
    # The global seed must not matter for the draws, so it differs from run to run.
    L.seed_everything(int(job.ckpt is None), verbose=False)
    callbacks: list[L.Callback] = [ModelCheckpoint(job.folder, "{step}", save_top_k=-1, **scenario.saves)]
    if scenario.kind == "exception":
        callbacks = [OnExceptionCheckpoint(job.folder)]
    fair = scenario.fair()
    settings = {"max_epochs": EPOCHS, "enable_checkpointing": True, **scenario.trainer}
    if "strategy" in settings:
        settings["strategy"] = RestoresLate(device=torch.device("cpu"))
    trainer = quiet_trainer(*([fair] if fair else []), *callbacks, **settings)
    with recorded_draws() as draws:
        try:
            trainer.fit(module, **scenario.data(workers), ckpt_path=job.ckpt)
        except InterruptedError:
            assert job.stop is not None
    return Run(
        module.before,
        module.steps,
        draws,
        find_callback(trainer).state_dict(),
        module.state_dict(),
        trainer.optimizers[0].state_dict(),
        trainer.global_step,
    )


# The forkserver has imported what costs seconds, so a new process costs a tenth of one.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
if sys.platform != "win32":
    PROCESSES.set_forkserver_preload(
        ["torch._dynamo", "torch.utils.serialization", "lightning.pytorch", "lightning_fair", "pytest"]
    )


def _play_and_tell(jobs: Sequence[Job]) -> None:
    if sys.platform == "linux":  # else the loader's workers are the forkserver's too, and import everything first
        multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.answer.write_bytes(pickle.dumps(play(job)))


def in_new_processes(jobs: Sequence[Job], each: int = 1) -> list[Run | None]:
    """Return the records of each run, or None if it was killed. A process has ``each`` runs, one after the other."""
    waiting, running = [jobs[start : start + each] for start in range(0, len(jobs), each)], {}
    # Not with threads: starting a process polls all others, and only one thread may see how a process ended.
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            batch = waiting.pop(0)
            process = PROCESSES.Process(target=_play_and_tell, args=(batch,))
            process.start()
            running[process.sentinel] = batch, process
        for sentinel in multiprocessing.connection.wait(list(running)):
            batch, process = running.pop(sentinel)
            process.join()
            killed = process.exitcode == -signal.SIGKILL and batch[0].stop is not None
            assert killed or process.exitcode == 0, f"{batch} ended with {process.exitcode}"
    return [pickle.loads(job.answer.read_bytes()) if job.answer.exists() else None for job in jobs]


# -- cut, resume, compare --------------------------------------------------------------------------------------


@dataclass
class Resumed:
    """A cut, and the differences of the resumed run from the uninterrupted one."""

    cut: int
    differences: list[str]


def resume_everywhere(name: str, folder: Path, fault: str | None = None, only: Sequence[int] = ()) -> list[Resumed]:
    """Cut the scenario after every batch, or after the batches ``only``, and resume it each time."""
    scenario = SCENARIOS[name]
    (whole,) = in_new_processes([Job(name, folder / "whole")])
    checkpoints = sorted((folder / "whole").glob("*.ckpt"))
    if scenario.kind != "checkpoint":
        stops = only or range(len(whole.steps))
        cuts = [Job(name, folder / f"cut {stop}", stop=stop, fault=fault) for stop in stops]
        in_new_processes(cuts)
        newest = [sorted(job.folder.glob("*.ckpt"), key=_trained_on)[-1:] for job in cuts]
        checkpoints = [path for paths in newest for path in paths]
    elif only:
        checkpoints = [path for path in checkpoints if _trained_on(path) in only]
    jobs = [Job(name, folder / f"rest {i}", path, fault=fault) for i, path in enumerate(checkpoints)]
    each = scenario.each if scenario.kind == "checkpoint" and not fault else 1
    compare = _differences_in_any_order if scenario.any_order else _differences
    resumed_runs = [
        Resumed(rest.before, compare(whole, rest, path))
        for path, rest in zip(checkpoints, in_new_processes(jobs, each), strict=True)
    ]
    return sorted(resumed_runs, key=lambda resumed: resumed.cut)


def _trained_on(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["trained on"]


def _saved(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint, weights_only=True)["callbacks"]["FairSampling"]


def _at_rest(callback: dict[str, Any]) -> dict[str, Any]:
    """Return the state in a form that is the same before an epoch begins and after.

    Where nothing is left to train Lightning begins no epoch, so if the checkpoint was written before the epoch's end,
    its last batch is still the place.
    """
    callback = {name: value for name, value in callback.items() if name != "checksum"}
    return {**callback, "sampler": {**callback["sampler"], "epoch": None, "position": None}}


def _differences(whole: Run, rest: Run, checkpoint: Path) -> list[str]:
    """Return the names of all records that are not the same bit for bit."""
    left = replace(whole, steps=whole.steps[rest.before :])
    expected = {draw_id: draw for draw_id, draw in whole.draws.items() if draw_id in rest.draws}
    known = {draw_id: draw for draw_id, draw in rest.draws.items() if draw_id in whole.draws}
    ends = (rest.callback, whole.callback) if left.steps else (_at_rest(rest.callback), _at_rest(whole.callback))
    same = {
        "samples": [step.indices for step in rest.steps] == [step.indices for step in left.steps],
        "draws": rest.draw_ids == left.draw_ids and bits(known) == bits(expected),
        "weights": bits([step.weights for step in rest.steps]) == bits([step.weights for step in left.steps]),
        "losses": bits([step.losses for step in rest.steps]) == bits([step.losses for step in left.steps]),
        "callback": bits(ends[0]) == bits(ends[1]),
        "model": bits(rest.model) == bits(whole.model),
        "optimizer": bits(rest.optimizer) == bits(whole.optimizer),
        "optimizer steps": rest.optimizer_steps == whole.optimizer_steps,
    }
    return [name for name, equal in same.items() if not equal]


def _differences_in_any_order(whole: Run, rest: Run, checkpoint: Path) -> list[str]:
    """Return the names of wrong records if batches overtake each other, so that no two runs are the same."""
    trained = whole.draw_ids[: rest.before]
    owed = set(range(_saved(checkpoint)["sampler"]["controller"]["draws"])) - set(trained)
    right = {
        # No draw is lost or repeated.
        "draws": sorted(trained + rest.draw_ids) == list(range(len(whole.steps))),
        "draws in flight": all(bits(rest.draws.get(draw_id)) == bits(whole.draws[draw_id]) for draw_id in owed),
        "optimizer steps": rest.optimizer_steps == whole.optimizer_steps,
    }
    return [name for name, fine in right.items() if not fine]


def bits(value: Any) -> Any:
    """Return a value that is equal to another one's only if they are the same bit for bit (NaN as well)."""
    if isinstance(value, Mapping):
        return {key: bits(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return repr(value)


def main() -> None:
    cuts = exact = 0
    print(f"{'scenario':40}{'cuts':>6}{'exact':>7}")
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            resumed_runs = resume_everywhere(name, Path(folder))
        good = sum(not resumed.differences for resumed in resumed_runs)
        cuts, exact = cuts + len(resumed_runs), exact + good
        note = "  (exact but for the order)" if scenario.any_order else ""
        print(f"{name:40}{len(resumed_runs):6}{good:7}{note}", flush=True)
        for resumed in resumed_runs:
            if resumed.differences:
                print(f"    cut after {resumed.cut}: other {', '.join(resumed.differences)}")
    print(f"{'all':40}{cuts:6}{exact:7}")


if __name__ == "__main__":
    import resume_runs  # by this name the other processes find it

    resume_runs.main()
