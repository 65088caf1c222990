"""Ctrl-C: a checkpoint after the training step, and the command that resumes from it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from lightning_fair.integration.trainer_internals import is_validation_due


class Interruption(L.Callback):
    """Ends a training at Ctrl-C with a checkpoint, and prints the command that resumes.

    The checkpoint is saved after a whole step that is not the last of its epoch and that no validation follows, because
    Lightning skips such a validation on resume, and after an epoch's last step loses count if the run is interrupted
    once more. If a whole epoch has no such step, it is saved at the end of that epoch. A second Ctrl-C ends at once,
    and so does the first one with several ranks, which may be in different steps: then the command resumes from the
    newest checkpoint.

    Args:
        cfg: The config of the run.
    """

    def __init__(self, cfg: DictConfig) -> None:
        trainer = cfg.trainer
        off = [f"{name}={trainer[name]}".lower() for name in ("fast_dev_run", "barebones") if trainer[name]]
        self.off = ["enable_checkpointing=false"] if trainer.enable_checkpointing is False else off
        self.path, self.resumed_from = str(Path(cfg.output_dir) / "checkpoints/interrupted.ckpt"), cfg.ckpt_path
        self.is_asked = self.has_waited = False  # the latter: since the end of an epoch
        self.handler: Any = None  # of the program, as long as this one is in its place

    def setup(self, trainer: L.Trainer, _: L.LightningModule, stage: str) -> None:
        """Wait for Ctrl-C. Loader workers, which start later, inherit the handler, so that they do not end first."""
        is_main = threading.current_thread() is threading.main_thread()
        is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as a shell sets it for a run in the background
        if stage == "fit" and trainer.world_size == 1 and not (self.off or is_ignored) and is_main:
            self.process, self.handler = os.getpid(), signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_: Any) -> None:
        if os.getpid() == self.process:
            self.is_asked = True
            self._restore_handler()
            # `print` must not be interrupted by itself.
            os.write(2, b"\nCtrl-C: saving a checkpoint after this or the next step. Ctrl-C again ends at once.\n")

    def _restore_handler(self) -> None:
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
        self.handler = None

    def on_train_batch_end(self, trainer: L.Trainer, *others: Any) -> None:
        """Save and end, if Ctrl-C was pressed and the step is suitable."""
        is_whole = (others[-1] + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        if self.is_asked and is_whole and not is_validation_due(trainer):
            self._save_and_end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, _: L.LightningModule) -> None:
        """Save and end, if no step of this epoch was suitable."""
        if self.has_waited:
            self._save_and_end(trainer)
        self.has_waited = self.is_asked

    def _save_and_end(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        raise KeyboardInterrupt

    def on_train_end(self, *_: Any) -> None:
        """Leave Ctrl-C as it was, and say so if the training has ended first."""
        self._restore_handler()
        if self.is_asked:
            print("\nThe training ended before Ctrl-C could interrupt it; its test follows. Ctrl-C again ends at once.")

    def on_exception(self, trainer: L.Trainer, _: L.LightningModule, exception: BaseException) -> None:
        """Print how to resume."""
        self._restore_handler()
        if not (self.is_asked or isinstance(exception, KeyboardInterrupt)) or not trainer.is_global_zero:
            return
        known = (self.path, getattr(trainer.checkpoint_callback, "best_model_path", ""), self.resumed_from)
        if newest := max(filter(os.path.isfile, filter(None, known)), key=os.path.getmtime, default=None):
            print(f"\nInterrupted. To resume:\n\n    {resume_command(newest)}\n")
        else:
            reason = f", because of trainer.{self.off[0]}" if self.off else " yet"
            print(f"\nInterrupted. No checkpoint was saved{reason}, so this run cannot be resumed.")


def resume_command(checkpoint: str | Path) -> str:
    """Return the command line of this program, with the checkpoint to resume from, for a POSIX shell."""
    return command_with("ckpt_path", checkpoint)


def command_with(key: str, path: str | Path) -> str:
    """Return the command line of this program with a path, relative to the working directory, for a setting."""
    words = [word for word in sys.orig_argv if word.lstrip("+").partition("=")[0] != key]
    path = os.path.relpath(path)
    if not re.fullmatch(r"[\w./-]+", path, flags=re.ASCII):  # Hydra's own quotes
        path = "'" + re.sub(r"(\\*)'", r"\1\1\\'", path) + "'"
    return shlex.join([*words, f"{key}={path}"])
