"""From a composed config to a report: all of the example but its command line."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import lightning as L
import rich
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import IterableDataset

from lightning_fair.common.labels import find_labels
from lightning_fair.integration.callback import FairSampling
from lightning_fair.schedules import Shift
from recipes.drift import Recovery, drifting
from recipes.report import Best, Report, make_report
from recipes.sweep_results import METRICS, metrics_of

# The columns of TensorBoard's HParams tab, beside those that were set on the command line.
HPARAMS = (
    "data",
    "data.imbalance_ratio",
    "data.batch_size",
    *(
        f"fair.{name}"
        for name in ("alpha", "min_prob", "horizon", "lambda1", "lambda2", "target_probs", "reference", "max_weight")
    ),
    "model.lr",
    "trainer.max_epochs",
    "seed",
)


def train(cfg: DictConfig, *more: L.Callback) -> Report:
    """Train and test what the config says.

    Args:
        cfg: ``conf/train.yaml`` as Hydra composes it; ``output_dir`` set.
        more: Callbacks beside those of the config, such as one that is to be read afterwards.

    Raises:
        TypeError: If a value that Hydra cannot check (``fair.alpha``, ``fair.target_probs``) has the wrong type.
        ValueError: If a value is out of range.
        InstantiationException: Hydra's, around the error of a constructor; it names the group of the config.
    """
    check(cfg)
    _quieten()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = instantiate(cfg.data)
    task = instantiate(cfg.model, _convert_="all")
    fair = instantiate(cfg.fair, _convert_="all") if cfg.fair else None
    # Whatever the data can show to be wrong comes to light here, before a logger or a checkpoint writes anything.
    data.prepare_data()
    data.setup("fit")
    _check_classes(cfg.model, data)
    _check_images(cfg.model, data)
    _take_baseline(cfg.baseline, task, data)
    if fair and isinstance(data.train_set, IterableDataset):
        fair.settings.make_controller(data.train_set)
    elif fair:
        fair.settings.make_sampler(find_labels(data.train_set, fair.settings.labels), data.batch_size)
    _check_schedules(cfg, fair)
    callbacks = [*(instantiate(callback) for callback in (cfg.callbacks or {}).values()), *more]
    if cfg.trainer.enable_progress_bar is False:
        # Lightning refuses the one beside the other.
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if any(isinstance(callback, Recovery) for callback in callbacks):
        drifting(data)
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    trainer = instantiate(
        cfg.trainer,
        callbacks=[fair, *callbacks] if fair else callbacks,
        logger=loggers or False,
        _convert_="all",
    )
    trainer.fit(task, datamodule=data, ckpt_path=cfg.ckpt_path)
    # Kept now, for the test takes its place; of a validation by the test set there is nothing to keep.
    validated = None if data.val_set is data.test_set else trainer.callback_metrics.get("val/balanced_accuracy")
    trainer.test(task, datamodule=data, verbose=False)
    report = _report(task, data, fair, None if validated is None else float(validated))
    _log_hparams(trainer, hparams(cfg), report)
    return report


def show(report: Report, cfg: DictConfig) -> None:
    """Print the report and the command that opens TensorBoard on the run's logs."""
    # Lightning's overfit_batches switches the plugin off.
    fair = "with FairSampling" if cfg.fair and not cfg.trainer.overfit_batches else "without FairSampling"
    fair = ", ".join(f"with {name}" for name in _baseline(cfg)) or fair
    rich.print(report.table(title=f"Test after training {fair}, seed {cfg.seed}"))
    rich.print(report.summary())
    folder = tensorboard_dir(cfg)
    if folder is None:
        print("\nNo TensorBoard logs (logger=tensorboard writes them).")
    else:
        # Plain print: rich would break a long command over two lines.
        print(f"\nCharts: tensorboard --logdir {_quoted(folder)}")


def tensorboard_dir(cfg: DictConfig) -> str | None:
    """Return the folder of the run's TensorBoard logs as seen from here, or None where there are none."""
    if cfg.trainer.fast_dev_run:  # Lightning then writes no logs
        return None
    target = f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__name__}"
    short = f"lightning.pytorch.loggers.{TensorBoardLogger.__name__}"
    for logger in (cfg.logger or {}).values():
        if logger._target_ in (target, short):
            return os.path.relpath(Path(logger.save_dir) / (logger.name or ""))
    return None


def check(cfg: DictConfig) -> None:
    """Refuse values that Hydra lets pass, and that would fail later or in other words.

    Raises:
        TypeError: Naming the key, the value and what it may be.
        ValueError: If the seed is negative, a baseline comes with the plugin, or the Trainer would leave no report.

    Example:
        >>> check(OmegaConf.create({"fair": {"alpha": "fast", "target_probs": "uniform"}}))
        Traceback (most recent call last):
        TypeError: fair.alpha must be a number or a schedule {_target_: lightning_fair.schedules...}, got 'fast'.
    """
    if cfg.get("seed", 0) < 0:
        raise ValueError(f"seed must be at least 0, got {cfg.seed}.")
    if cfg.fair and _baseline(cfg):
        raise ValueError(
            f"A baseline ({', '.join(_baseline(cfg))}) goes with fair=off: beside FairSampling both would correct for "
            "the class mix. Leave fair=... out, or take baseline=none."
        )
    strategy = str(OmegaConf.select(cfg, "trainer.strategy"))
    if re.search("fork|spawn|notebook", strategy):
        raise ValueError(
            f"trainer.strategy={strategy} trains in processes that take what the report is made of with them. For "
            "several devices set trainer.strategy=ddp."
        )
    if OmegaConf.select(cfg, "trainer.limit_test_batches") == 0:
        raise ValueError("trainer.limit_test_batches must be more than 0, for the report is that of the test, got 0.")
    fair: Any = OmegaConf.to_container(cfg.fair, resolve=True) if cfg.fair else {}
    alpha = fair.get("alpha", 0.0)
    if not (_is_number(alpha) or (isinstance(alpha, Mapping) and "_target_" in alpha)):
        raise TypeError(
            f"fair.alpha must be a number or a schedule {{_target_: lightning_fair.schedules...}}, got {alpha!r}."
        )
    target = fair.get("target_probs")
    if isinstance(target, Mapping) and "_target_" in target:
        return
    numbers = target.values() if isinstance(target, Mapping) else target if isinstance(target, list) else ()
    if not isinstance(target, (str, list, Mapping, type(None))) or not all(map(_is_number, numbers)):
        raise TypeError(
            "fair.target_probs must be a name, a list of probabilities, a mapping from class to probability or a shift "
            f"{{_target_: lightning_fair.schedules.Shift, ...}}, got {target!r}."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _baseline(cfg: DictConfig) -> list[str]:
    """Return the names of what a baseline replaces."""
    parts = cfg.get("baseline") or {}
    return [part._target_.rpartition(".")[2] for part in parts.values() if part]


def _take_baseline(baseline: DictConfig, task: Any, data: Any) -> None:
    if baseline.sampler:
        if not hasattr(data, "make_sampler"):
            raise ValueError(
                f"A sampler draws by index, and {type(data).__name__} gives a stream. Take a baseline that changes the "
                "loss, or fair=... for a stream that is steered."
            )
        data.make_sampler = instantiate(baseline.sampler)
    for part in ("loss", "adjust"):
        if baseline[part]:
            setattr(task, part, instantiate(baseline[part])(data.train_set.class_counts))


def _check_classes(model: DictConfig, data: Any) -> None:
    found = data.train_set.class_counts.size
    stated = {key: OmegaConf.select(model, key) for key in ("num_classes", "net.num_classes")}
    wrong = [f"model.{key}={value}" for key, value in stated.items() if value not in (None, found)]
    if wrong:
        raise ValueError(
            f"The data have {found} classes, but the model is for another number: {', '.join(wrong)}. Set "
            f"model.num_classes={found}; model.net.num_classes follows where it is left out."
        )


def _check_images(model: DictConfig, data: Any) -> None:
    channels, height, width = next(iter(data.train_set))[0].shape
    wanted = {"net.in_channels": channels, "standardize.channels": channels, "net.image_size": height}
    stated = {key: value for key in wanted if (value := OmegaConf.select(model, key)) is not None}
    if "net.image_size" in stated and height != width:
        raise ValueError(
            f"The images are {height} x {width} pixels, but this model is for square ones. Take model=resnet32."
        )
    wrong = [key for key, value in stated.items() if value != wanted[key]]
    if wrong:
        raise ValueError(
            f"The images are {channels} x {height} x {width} (channels, height, width), but the model has "
            f"{', '.join(f'{key}={stated[key]}' for key in wrong)}. Set "
            f"{' '.join(f'model.{key}={wanted[key]}' for key in wrong)}, or take another model=..."
        )


def _check_schedules(cfg: DictConfig, fair: FairSampling | None) -> None:
    """Refuse what begins in a later epoch, where there is only one: the run would be another than it is called."""
    if cfg.trainer.max_epochs != 1:
        return
    late = []
    if fair and isinstance(fair.target_probs, Shift) and fair.target_probs.progress.by_epoch:
        late.append("a target that moves by epochs (fair.target_probs)")
    if OmegaConf.select(cfg, "baseline.loss.begin"):
        late.append(f"a loss from epoch {cfg.baseline.loss.begin} on (baseline.loss.begin)")
    if late:
        raise ValueError(
            f"With trainer.max_epochs=1 {' and '.join(late)} would change nothing. Set trainer.max_epochs=2 or more, "
            "or take another fair=... or baseline=..."
        )


def _report(task: Any, data: Any, fair: FairSampling | None, validated: float | None) -> Report:
    drawn = task.drawn.cpu().numpy()
    counts = data.train_set.class_counts
    if fair and fair.sampler is None:
        fair = None  # it drew nothing: overfit_batches switches it off
    return make_report(
        classes=data.train_set.classes or [str(label) for label in range(counts.size)],
        images=counts,
        drawn=drawn,
        recall=task.test_recall.numpy(),
        accuracy=task.test_accuracy,
        largest_weight=fair.largest_weight if fair else 1.0,
        # Without weights every sample counts fully.
        effective_sample_size=fair.effective_sample_size if fair else drawn.sum() / max(int(task.steps), 1),
        val_balanced_accuracy=validated,
        best=Best(int(task.best_epoch), float(task.best_accuracy), data.val_set is data.test_set)
        if task.best_epoch
        else None,
    )


def hparams(cfg: DictConfig) -> dict[str, float | str | bool]:
    """Return what TensorBoard's HParams tab compares runs by: those of `HPARAMS`, and what was set by hand.

    TensorBoard takes the columns from whichever run it reads first, so that every run has to have all of them:
    what a run lacks is ``"off"``.

    Example:
        >>> hparams(OmegaConf.create({"seed": 1, "fair": {"alpha": 8.0}}))["fair.alpha"]
        8.0
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    by_hand = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    found: dict[str, float | str | bool] = {}
    for key in dict.fromkeys((*HPARAMS, *by_hand)):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, DictConfig) and key in by_hand:
            value = by_hand[key]  # a group by the name of the choice
        elif isinstance(value, DictConfig) and "_target_" in value:
            value = value._target_.rpartition(".")[2]
        elif value is None:
            value = by_hand.get(key) or ("default" if OmegaConf.select(cfg, key.rpartition(".")[0]) else "off")
        found[key] = value if isinstance(value, (int, float, str)) else str(value)
    return found


def _log_hparams(trainer: L.Trainer, params: dict[str, float | str | bool], report: Report) -> None:
    # As in `hparams`: what a run lacks, such as few-shot classes, is there and not a number.
    found = metrics_of(report)
    metrics = {f"hp/{name}": found.get(name, math.nan) for name in METRICS}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(params, metrics)
            logger.finalize("success")


def _quieten() -> None:
    """Leave the progress bar and the table; drop Lightning's hardware report and advice."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
