"""A callback that saves the random states of torch, NumPy and Python in the checkpoint, and gives them back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_fair.common.arrays import to_numpy
from lightning_fair.common.distributed import count_ranks, gather_from_ranks
from lightning_fair.common.saved_states import array, check_state, check_version, integer, number, optional
from lightning_fair.integration.lightning_packages import Callback
from lightning_fair.integration.trainer_internals import restore_randomness

if TYPE_CHECKING:
    import lightning.pytorch as L

_VERSION = 1


class RandomStates(Callback):
    """Saves the random states of torch, NumPy and Python in each checkpoint, so that dropout and augmentation go on.

    Lightning does not save them: a run that is resumed in the middle draws the random numbers of its beginning once
    more. With this callback a resumed run has the dropout and the augmentation of an uninterrupted one, and with
    :class:`~lightning_fair.FairSampling`, which chooses the samples, it ends with the same model, bit for bit. It works
    without the plugin too: from a checkpoint between two epochs, because Lightning cannot resume a plain loader within
    one.

    Each rank has its own states: those of the CPU, and of its GPU if it trains on one. Only the same number of ranks
    can have them back; else, and if the checkpoint has none, a warning says so and the run has those of its own seed.

    What it cannot bring back:

    - The states of loader workers, which draw in processes of their own. From a checkpoint between two epochs they have
      the seeds of the uninterrupted run, unless ``persistent_workers`` carry theirs from epoch to epoch; from one
      within an epoch, other random numbers. Augmentation in the main process (``num_workers=0``) or in the training
      step is exact.
    - What was drawn in a step that an exception has cut.
    - What is drawn in a validation (except the seeds that its loaders take), and in hooks at the end of an epoch or the
      beginning of the next one, if Lightning skips them on resume because the checkpoint was saved after the batch
      before them.
    - What a stream's source draws, unless its own state has it; :class:`~lightning_fair.FairStream` continues the rest.

    Example:
        >>> import lightning.pytorch as L  # or: import pytorch_lightning as L
        >>> trainer = L.Trainer(callbacks=[RandomStates()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._device, self._rank, self._in_fit = torch.device("cpu"), 0, True
        self._waiting: Mapping[str, Any] | None = None  # the states of this rank, until training begins
        self._patches = ExitStack()  # of Lightning's methods, until then

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remember the device, whose random state is saved too."""
        self._device, self._rank, self._waiting = trainer.strategy.root_device, trainer.global_rank, None
        self._in_fit = stage == "fit"
        self._patches.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks. Every rank has to call it, as Lightning does."""
        return {"version": _VERSION, "ranks": gather_from_ranks(_capture(self._device))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states of this rank until the loaders are made, which draw random numbers themselves.

        Raises:
            ValueError: If the state is damaged.
        """
        check_version("RandomStates", state_dict, _VERSION)
        check_state("RandomStates", state_dict, {"version": integer(), "ranks": [_spec()]})
        saved, ranks = state_dict["ranks"], count_ranks()
        if len(saved) == ranks:
            self._waiting = saved[self._rank]
        elif self._in_fit:
            _warn(f"has the random states of {len(saved)} ranks, and this run has {ranks}. Resume on {len(saved)}")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Warn if the checkpoint was made without this callback."""
        if self._in_fit and self.state_key not in checkpoint.get("callbacks", {}):
            _warn("has no random states. Save checkpoints with RandomStates among the callbacks")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Give back the states of the checkpoint, where an uninterrupted run would have them."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            restore_randomness(self._patches, trainer, partial(_give_back, waiting, self._device))


def _warn(problem: str) -> None:
    rank_zero_warn(f"The checkpoint {problem}, or dropout and augmentation are not those of the uninterrupted run.")


def _capture(device: torch.device) -> dict[str, Any]:
    """Return the states of this process, as plain values that load with ``weights_only=True``."""
    _, words, *rest = np.random.get_state()  # noqa: NPY002  # what legacy code draws with
    _, of_python, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest],
        "python": [torch.tensor(of_python), spare],
    }


def _spec() -> dict[str, Any]:
    words = partial(array, dtype=torch.int64, low=0, high=2**32 - 1)
    return {
        "torch": array(torch.get_rng_state().numel(), dtype=torch.uint8),
        "cuda": optional(array(None, dtype=torch.uint8)),
        "numpy": [words(624), integer(0, 624), integer(0, 1), number()],
        "python": [words(625), optional(number())],
    }


def _give_back(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", to_numpy(words).astype(np.uint32), *rest))  # noqa: NPY002
    of_python, spare = state["python"]
    random.setstate((3, tuple(of_python.tolist()), spare))
