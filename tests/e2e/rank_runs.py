"""Processes that train together, one per rank, and their records. The processes import this module."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import torch.distributed
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_helpers import TARGET, Indexed, Plain, Step, Weighted, fit, loader
from loader_runs import Bulk, Prefetcher
from tag_helpers import Tagged, Tagger
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from lightning_fair import FairDataModule, FairSampling, FairStream, FeedbackBatchSampler, RandomStates
from lightning_fair.integration.callback import find_callback

COUNTS = (97, 32, 20, 12)  # 161 samples: no batch size divides them
if sys.version_info < (3, 11, 10):
    # A worker that is forked while one of gloo's threads begins or ends never starts (CPython issue 112275): about
    # one of 200 fits, with or without lightning-fair. In this time the threads come to rest.
    os.register_at_fork(before=partial(time.sleep, 0.03))

PATIENCE = 120.0  # seconds that a task may take, with the start of the processes: they take 1 to 30


# p moves from draw to draw, by the deficits only: then every sum is exact, with any number of ranks.
QUIET: dict[str, Any] = {"target_probs": TARGET, "horizon": 16, "seed": 0}


# -- one run ---------------------------------------------------------------------------------------------


@dataclass
class Run:
    """The records of one rank, one entry per step."""

    steps: list[Step]
    draw_ids: list[int] = field(default_factory=list)
    probs: list[np.ndarray] = field(default_factory=list)
    references: list[np.ndarray] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)  # after the step, bit for bit
    trained_mixes: list[np.ndarray] = field(default_factory=list)
    params: list[bytes] = field(default_factory=list)
    all_reduces: list[list[int]] = field(default_factory=list)  # how many numbers each of them summed
    epochs: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def indices(self) -> list[list[int]]:
        return [step.indices for step in self.steps]


def exact(value: Any) -> Any:
    """Return a state in a form that is equal only if every bit is."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: exact(part) for key, part in value.items()}
    return [exact(part) for part in value] if isinstance(value, (list, tuple)) else value


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter whose parts may be on several ranks."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


class _Watched:
    """Writes a ``Run``. Lightning calls a module's hooks after those of all callbacks."""

    out: Path | None = None  # where the run goes, if this process ends with it

    def on_fit_start(self) -> None:
        self.run = Run(self.steps)
        self.sums: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        draw = find_callback(self.trainer)._run.current.draw
        self.run.draw_ids.append(draw.draw_id)
        self.run.probs.append(draw.probs.copy())
        self.run.references.append(draw.reference.copy())
        self.sums.clear()

    def configure_model(self) -> None:
        """Shard the layer, if the strategy is Lightning's model parallel one; Lightning may call it twice."""
        if self.device_mesh is None or hasattr(self.net.weight, "full_tensor"):
            return
        from torch.distributed.fsdp import fully_shard  # torch 2.6
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.net, tensor, ColwiseParallel(output_layouts=Replicate()))
        if data.size() > 1:
            fully_shard(self.net, mesh=data)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        callback = find_callback(self.trainer)
        self.run.states.append(exact(callback.sampler.capture()))
        self.run.trained_mixes.append(callback.controller.trained_mix.copy())
        self.run.params.append(b"".join(whole(p).detach().numpy().tobytes() for p in self.parameters()))
        self.run.all_reduces.append(list(self.sums))
        self.run.epochs += [0] * (self.trainer.current_epoch + 1 - len(self.run.epochs))
        self.run.epochs[self.trainer.current_epoch] += 1

    def on_train_end(self) -> None:
        if self.out:
            (self.out / f"rank{self.trainer.global_rank}").write_bytes(pickle.dumps(self.run))


class Unweighted(_Watched, Plain):
    pass


class WithMixin(_Watched, Weighted):
    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.adjusted_logits(self.net(x)), y, reduction="none")


class WithNoise(WithMixin):
    """Draws random numbers in each step, on each rank its own."""

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return super().losses(x + torch.randn_like(x), y)


class WithTags(_Watched, Tagger):
    """Its samples have several labels."""


class Data(L.LightningDataModule):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings

    def train_dataloader(self) -> DataLoader:
        return data(**self.settings)


def data(counts: tuple[int, ...] = COUNTS, batch_size: int = 4, **settings: Any) -> DataLoader:
    return loader(Indexed(counts), batch_size=batch_size, **settings)


def tags(**settings: Any) -> DataLoader:
    return loader(Tagged(), **{"batch_size": 4, **settings})


def train(
    *,
    world_size: int = 1,
    mixin: bool = True,
    noisy: bool = False,
    tagged: bool = False,
    fair: FairSampling | None = None,
    install: str = "callback",
    strategy: str | Callable[[], Any] = "ddp",
    num_nodes: int = 1,
    loaded: dict[str, Any] | None = None,
    make_loader: Callable[..., Any] = data,
    keep: Path | None = None,
    ckpt: Path | None = None,
    out: Path | None = None,
    **settings: Any,
) -> Run:
    """Train on this rank, and return its records.

    ``loaded`` are settings of the loader, ``make_loader`` makes it; ``keep`` is where a checkpoint of every step
    goes; the rest are settings of the Trainer.
    """
    module = (WithTags if tagged else WithNoise if noisy else WithMixin if mixin else Unweighted)()
    module.out = out
    fair = FairSampling(**QUIET) if fair is None else copy.deepcopy(fair)  # a new one for every run
    source: Any = Data(**loaded or {}) if install == "datamodule" else make_loader(**loaded or {})
    if install == "datamodule":
        source = FairDataModule(source, fair=fair)
    elif install == "mixin":
        module.fair_sampling = fair
    callbacks: list[L.Callback] = [fair] if install == "callback" else []
    if noisy:
        os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier test: Lightning would give it to every rank
        torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
        callbacks.append(RandomStates())
    if keep:
        # The first saves before the end of an epoch is counted, the second after it.
        settings_of_both: dict[str, Any] = {"save_top_k": -1, "auto_insert_metric_name": False}
        callbacks += [
            ModelCheckpoint(keep, "step{step}", every_n_train_steps=1, **settings_of_both),
            ModelCheckpoint(keep, "epoch{epoch}", every_n_epochs=1, **settings_of_both),
        ]
    several: dict[str, Any] = {}
    if world_size > 1:
        several = {"devices": world_size // num_nodes, "num_nodes": num_nodes}
        several["strategy"] = strategy() if callable(strategy) else strategy
    with pytest.MonkeyPatch.context() as patch:
        all_reduce = torch.distributed.all_reduce

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            module.sums.append(tensor.numel())
            return all_reduce(tensor, *args, **kwargs)

        if strategy == "ddp" and not out:
            patch.setattr(torch.distributed, "all_reduce", counted)
        module.sums = []
        fit(module, source, *callbacks, ckpt=ckpt, enable_checkpointing=bool(keep), **several, **settings)
    return getattr(module, "run", Run([]))


def train_or_refuse(**settings: Any) -> Run:
    """Train, and return an error as the run's ``failure``."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run = train(**settings)
    except Exception as error:
        return Run([], failure=f"{type(error).__name__}: {error}")
    run.warnings = [str(warning.message) for warning in caught]
    return run


# -- data that differ from rank to rank ---------------------------------------------------------------------


def this_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


class Drop:
    """A ``collate_fn`` that leaves samples out on some ranks; never all of a batch."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks = ranks

    def __call__(self, samples: list[Any]) -> Any:
        if this_rank() in self.ranks:
            samples = [s for s in samples if s[2] % (3 + this_rank())] or samples[:1]
        return default_collate(samples)


class NoneNowAndThen:
    """A ``collate_fn`` that returns None for every fifth batch, on one rank or on all."""

    def __init__(self, ranks: tuple[int, ...]) -> None:
        self.ranks, self.calls = ranks, 0

    def __call__(self, samples: list[Any]) -> Any:
        self.calls += 1
        return None if this_rank() in self.ranks and self.calls % 5 == 0 else default_collate(samples)


class OwnBatches(BatchSampler):
    """A user's own batch sampler, which draws in a way of its own."""

    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


class OtherBatches:
    """A user's own batch sampler that is no ``BatchSampler``, so Lightning cannot split it."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        self.batches = list(torch.arange(len(dataset)).split(size))
        self.batch_size = size

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return (batch.tolist() for batch in self.batches)


SAMPLERS: dict[str, Callable[[Dataset], dict[str, Any]]] = {
    "shuffled": lambda d: {"batch_size": 4, "shuffle": True},
    "in order": lambda d: {"batch_size": 4},
    "last dropped": lambda d: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "DistributedSampler": lambda d: {"batch_size": 4, "sampler": split(d)},
    "WeightedRandomSampler": lambda d: {"batch_size": 4, "sampler": WeightedRandomSampler([1.0] * len(d), len(d))},
    "SubsetRandomSampler": lambda d: {"batch_size": 4, "sampler": SubsetRandomSampler(range(80))},
    "40 at random": lambda d: {"batch_size": 4, "sampler": RandomSampler(d, num_samples=40)},
    "BatchSampler": lambda d: {"batch_sampler": BatchSampler(RandomSampler(d), 4, drop_last=False)},
    "BatchSampler, split": lambda d: {"batch_sampler": BatchSampler(split(d), 4, drop_last=False)},
    "own batch sampler": lambda d: {"batch_sampler": OwnBatches(RandomSampler(d), 4, drop_last=False)},
    "own batch sampler, split": lambda d: {"batch_sampler": OwnBatches(split(d), 4, drop_last=False)},
    "own batch sampler of a part": lambda d: {
        "batch_sampler": OwnBatches(SubsetRandomSampler(range(80)), 4, drop_last=False)
    },
    "in bulk": lambda d: {"batch_size": None, "sampler": BatchSampler(RandomSampler(d), 4, drop_last=False)},
    "in bulk, split": lambda d: {"batch_size": None, "sampler": BatchSampler(split(d), 4, drop_last=False)},
    "prefetcher": lambda d: {"batch_size": 4, "shuffle": True},
    "no BatchSampler": lambda d: {"batch_sampler": OtherBatches(d, 4)},
}


def split(dataset: Dataset) -> DistributedSampler:
    return DistributedSampler(dataset, num_replicas=2, rank=this_rank())


def with_sampler(kind: str) -> Any:
    dataset = (Bulk if "bulk" in kind else Indexed)(COUNTS)
    data = DataLoader(dataset, **SAMPLERS[kind](dataset))
    return Prefetcher(data) if kind == "prefetcher" else data


class WithSampler(L.LightningDataModule):
    """Makes its loader in a hook, where Lightning records how it was made."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def train_dataloader(self) -> Any:
        return with_sampler(self.kind)


def train_with_sampler(kind: str, **settings: Any) -> dict[tuple[bool, bool], Run]:
    """Train with the loader given or made in a hook, with and without Lightning's own sampler injection."""
    return {
        (in_hook, injection): train_or_refuse(
            make_loader=partial(WithSampler if in_hook else with_sampler, kind),
            use_distributed_sampler=injection,
            **settings,
        )
        for in_hook in (False, True)
        for injection in (True, False)
    }


def train_without_us(world_size: int, **loaded: Any) -> None:
    fit(Plain(), data(**loaded), devices=world_size, strategy="ddp")


def train_with_own_seed(**settings: Any) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", str(this_rank()))  # as seed_everything does
        return train(**settings)


def train_unlike(own: Sequence[dict[str, Any]], act: Callable[..., Run] = train_or_refuse, **same: Any) -> Run:
    """Train with settings of each rank's own."""
    return act(**same, **own[this_rank()])


def resume(checkpoints: list[Path], **settings: Any) -> list[Run]:
    return [train(ckpt=checkpoint, **settings) for checkpoint in checkpoints]


class Shard(IterableDataset):
    """Samples of one rank, which no other rank has."""

    def __init__(self, *counts: tuple[int, ...]) -> None:
        self.samples = Indexed(counts[this_rank()])

    def __iter__(self) -> Any:
        order = np.random.default_rng(0).permutation(len(self.samples))
        return (self.samples[index] for index in order.tolist())


def shards(*counts: tuple[int, ...], batch_size: int = 4) -> DataLoader:
    stream = FairStream(Shard(*counts), batch_size=batch_size, label_fn=itemgetter(1))
    return DataLoader(stream, batch_size=batch_size)


def labels_of_one(dataset: Any) -> torch.Tensor:
    if this_rank():
        raise OSError("no labels on this disk")
    return dataset.targets


def labels_that_change(dataset: Any) -> torch.Tensor:
    """Labels that are others from the second epoch on, on one rank."""
    dataset.calls = getattr(dataset, "calls", 0) + 1  # the first one is before the first epoch
    return dataset.targets.flip(0) if dataset.calls > 2 and this_rank() else dataset.targets


def sample(labels: Any, *, world_size: int, **settings: Any) -> Run:
    """Draw two epochs in a loop of one's own."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", rank=this_rank(), world_size=world_size)
    settings = {"rank": this_rank(), "world_size": world_size, **settings}
    epoch = settings.pop("epoch", 0)
    sampler = FeedbackBatchSampler(labels, **settings)
    sampler.set_epoch(epoch)
    try:
        for _ in range(2):
            for _ in sampler:
                sampler.controller.step_update([])
    except Exception as error:
        return Run([], failure=f"{type(error).__name__}: {error}")
    return Run([], epochs=[len(sampler)] * 2)


# -- the processes -----------------------------------------------------------------------------------------


class RanksError(Exception):
    pass


class Ranks:
    """Starts one process per rank, and runs the same task in all of them at the same time.

    They stay for the next task, since a start takes seconds. After a task that failed or took too long they are
    ended, and the next task gets new ones.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.processes: list[Any] = []
        self.pipes: list[Any] = []

    def __call__(self, task: Callable[..., Any] = train, *, patience: float = PATIENCE, **settings: Any) -> list[Any]:
        """Return what the task returned on each rank."""
        if not self.processes:
            self._start()
        try:
            for pipe in self.pipes:
                pipe.send((task, {"world_size": self.world_size, **settings}, patience))
            return self._answers(time.monotonic() + patience)
        except BaseException:
            self.end()
            raise

    def _start(self) -> None:
        port = str(free_port())
        for rank in range(self.world_size):
            parent_end, child_end = multiprocessing.Pipe()
            # As a cluster's launcher sets them, so that Lightning starts no processes itself.
            place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.processes.append(start("serve", str(child_end.fileno()), pass_fds=[child_end.fileno()], **place))
            self.pipes.append(parent_end)
            child_end.close()

    def _answers(self, deadline: float) -> list[Any]:
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(max(deadline - time.monotonic(), 0)):
                raise RanksError(f"Rank {rank} did not end in time.")
            try:
                answer, error = pipe.recv()
            except EOFError:
                raise RanksError(f"Rank {rank} died.") from None
            if error:
                raise RanksError(f"Rank {rank} failed:\n{error}")
            answers.append(answer)
        return answers

    def end(self) -> None:
        for process in self.processes:
            end(process)
        for pipe in self.pipes:
            pipe.close()
        self.processes, self.pipes = [], []


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(
    *arguments: str, pass_fds: Sequence[int] = (), run: Sequence[str] = (), **environment: str
) -> subprocess.Popen:
    """Run this file, or ``run`` it in another way, in a process group of its own, so that ``end`` ends its children."""
    # Not `multiprocessing.Process`: below one, the workers of a loader take five seconds to end.
    return subprocess.Popen(
        [sys.executable, *run, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        pass_fds=pass_fds,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of the group may be gone
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def serve(descriptor: str) -> None:
    """Run the tasks that arrive through a pipe."""
    pipe = Connection(int(descriptor))
    while True:
        try:
            task, settings, patience = pipe.recv()
        except EOFError:  # the tests are over
            return
        signal.alarm(int(patience) + 10)  # ends this process even where the one that would is gone
        try:
            answer = task(**settings), None
        except BaseException:
            answer = None, traceback.format_exc()
        pipe.send(answer)
        signal.alarm(0)


def launch(folder: str, *strategies: str) -> None:
    """Let Lightning start the second process by itself."""
    signal.alarm(int(PATIENCE))
    for name in strategies:
        (Path(folder) / name).mkdir(exist_ok=True)
        train(world_size=2, strategy=name, out=Path(folder) / name, max_epochs=2)


def train_on_node(folder: str, world_size: str) -> None:
    """Train in a process that torchrun has started on one of two nodes."""
    signal.alarm(int(PATIENCE))
    train(world_size=int(world_size), num_nodes=2, out=Path(folder), max_epochs=2)


def model_parallel(tensor_parallel_size: int = 1) -> ModelParallelStrategy:
    """Return Lightning's strategy for two processes, each with half of every parameter."""
    return ModelParallelStrategy(2 // tensor_parallel_size, tensor_parallel_size)


if __name__ == "__main__":
    import rank_runs  # under its own name, which the pickles have

    getattr(rank_runs, sys.argv[1])(*sys.argv[2:])
