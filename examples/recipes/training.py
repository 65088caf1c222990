"""Train and test a composed config, and show the report."""

from __future__ import annotations

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import rich
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import IterableDataset
from torch.utils.tensorboard import summary

from lightning_fair import FairSampling, FairStream, RandomStates
from lightning_fair.dataloaders.label_scan import find_loader_labels
from lightning_fair.integration.presets import PRESETS
from lightning_fair.integration.training_length import TrainingLength
from recipes.checks import baseline_names, check_config, check_feedback, check_model, check_schedules
from recipes.configs import is_silent
from recipes.drift import drift_stream
from recipes.recovery import Recovery
from recipes.report import Best, Report, make_report

# The settings in TensorBoard's HParams tab, beside the plugin, the baseline, the data and what is on the command line.
HPARAMS = (
    *("data.imbalance_ratio", "data.batch_size"),
    *("fair.preset", "fair.target_probs", "fair.reference", "fair.correction", "fair.max_repeats"),
    *("fair.alpha", "fair.max_weight", "fair.horizon", "fair.lambda1", "fair.lambda2"),
    *("fair.feedback", "fair.feedback_to", "fair.feedback_gain"),
    *("model.lr", "trainer.max_epochs", "seed"),
)


def train(cfg: DictConfig, *extra_callbacks: L.Callback) -> Report:
    """Train and test as the config says.

    Args:
        cfg: ``conf/train.yaml`` as Hydra composes it; ``output_dir`` set.
        extra_callbacks: Callbacks in addition to those of the config.

    Raises:
        TypeError: If ``fair.alpha`` or ``fair.target_probs`` has a wrong type.
        ValueError: If a value is out of range.
        InstantiationException: Hydra's wrapper of an error in a constructor; it names the group of the config.
    """
    data, model, fair = prepare(cfg)
    callbacks = [*(instantiate(callback) for callback in (cfg.callbacks or {}).values() if callback), *extra_callbacks]
    callbacks.append(RandomStates())
    if cfg.trainer.enable_progress_bar is False:
        # Lightning refuses a progress bar together with this setting.
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    recovery = next((callback for callback in callbacks if isinstance(callback, Recovery)), None)
    if recovery:
        drift_stream(data)
    loggers = [instantiate(logger) for logger in (cfg.logger or {}).values()]
    callbacks = [fair, *callbacks] if fair else callbacks
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers or False, _convert_="all")
    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path)
    # Read before the test overwrites it. A validation on the test set does not count as one.
    validated = None if data.val_set is data.test_set else trainer.callback_metrics.get("val/balanced_accuracy")
    trainer.test(model, datamodule=data, verbose=False)
    report = _report(model, data, fair, None if validated is None else float(validated), recovery)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            _log_hparams(logger, hparams(cfg), report.metrics())
    return report


def prepare(cfg: DictConfig) -> tuple[Any, Any, FairSampling | None]:
    """Return data, model and plugin of a run. It raises the errors of :func:`train`, and writes nothing.

    The plugin is None with ``fair=off``.
    """
    check_config(cfg)
    _quiet()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data, model = instantiate(cfg.data), instantiate(cfg.model, _convert_="all")
    fair = instantiate(cfg.fair, _convert_="all") if cfg.fair else None
    # All errors that the data can cause occur here, before a logger or a checkpoint writes anything.
    data.prepare_data()
    data.setup("fit")
    check_model(cfg.model, data)
    _set_baseline(cfg.baseline, model, data)
    if fair and isinstance(data.train_set, IterableDataset):
        fair.settings.make_controller(FairStream(data.train_set, batch_size=data.batch_size))
    elif fair:
        loader = data.train_dataloader()
        labels = find_loader_labels(loader, fair.settings.labels, fair.settings.stated_classes)
        length = TrainingLength(cfg.trainer.max_epochs or -1, cfg.trainer.max_steps).batches(len(loader))
        fair.settings.make_sampler(labels, data.batch_size, dataset=data.train_set, total_batches=length)
    check_feedback(data, fair)
    check_schedules(cfg, fair)
    return data, model, fair


def show(report: Report, cfg: DictConfig) -> None:
    """Print the report and the command that opens TensorBoard on the run's logs."""
    # Lightning's overfit_batches turns the plugin off.
    fair = "with FairSampling" if cfg.fair and not cfg.trainer.overfit_batches else "without FairSampling"
    method = ", ".join(f"with {name}" for name in baseline_names(cfg)) or fair
    rich.print(report.table(title=f"Test after training {method}, seed {cfg.seed}"))
    rich.print(report.summary())
    folder = tensorboard_dir(cfg)
    if folder is None:
        print("\nNo TensorBoard logs (logger=tensorboard writes them).")
    else:
        # Plain print, because rich would break a long command over two lines.
        print(f"\nCharts: tensorboard --logdir {quoted(folder)}")


def tensorboard_dir(cfg: DictConfig) -> str | None:
    """Return the folder of the run's TensorBoard logs, relative to the working directory; None without such logs."""
    if cfg.trainer.fast_dev_run:  # Lightning then writes no logs
        return None
    for logger in (cfg.logger or {}).values():
        if logger._target_.rpartition(".")[2] == TensorBoardLogger.__name__:
            return os.path.relpath(Path(logger.save_dir) / (logger.name or ""))
    return None


def quoted(path: str | Path) -> str:
    """Return a path for a shell command, in quotes if it has a space."""
    return f'"{path}"' if " " in str(path) else str(path)


def hparams(cfg: DictConfig) -> dict[str, float | str | bool]:
    """Return the settings in TensorBoard's HParams tab; those that a run does not have are left out.

    Example:
        >>> hparams(OmegaConf.create({"seed": 1, "fair": {"alpha": 8.0}}))["fair.alpha"]
        8.0
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    said = [override.lstrip("+~") for override in overrides if not is_silent(override)]
    command_line = dict(override.partition("=")[::2] for override in said)
    values = {key: _hparam(cfg, key, command_line.get(key)) for key in (*HPARAMS, *command_line)}
    # Of the config, because a program that composes several runs has a command line of its own.
    values["fair"] = cfg.fair.get("preset", "balanced") if cfg.get("fair") else "off"
    values.setdefault("baseline", ",".join(baseline_names(cfg)) or "none")
    values["data"] = str(OmegaConf.select(cfg, "data._target_")).rpartition(".")[2]
    return {key: value for key, value in values.items() if value is not None}


def _hparam(cfg: DictConfig, key: str, override: str | None) -> float | str | bool | None:
    value, (group, _, name) = OmegaConf.select(cfg, key), key.partition(".")
    if value is None and group == "fair" and cfg.get("fair"):
        value = getattr(PRESETS[cfg.fair.get("preset", "balanced")], name, None)
    if value is None or isinstance(value, DictConfig):
        section = OmegaConf.select(cfg, group)
        if isinstance(section, DictConfig) and not section:
            return None  # the run has no plugin
        return override or (str(value or "default") if section else None)
    return value if isinstance(value, (int, float, str)) else str(value)


@rank_zero_only
def _log_hparams(logger: TensorBoardLogger, settings: dict[str, Any], metrics: dict[str, float]) -> None:
    # Without a list of columns, TensorBoard shows the settings that differ between the runs first. All scalars are then
    # metrics, in the order of their names, so the capital letter and the numbers put these first.
    numbered = {f"Result/{n:02d}_{name}": value for n, (name, value) in enumerate(metrics.items(), start=1)}
    logger.log_metrics({name: value for name, value in numbered.items() if not math.isnan(value)})
    _, start, end = summary.hparams(settings, {})  # type: ignore[no-untyped-call]
    for record in (start, end):
        logger.experiment.file_writer.add_summary(record)  # open, because a scalar was just written
    logger.finalize("success")


def _set_baseline(baseline: DictConfig, model: Any, data: Any) -> None:
    if baseline.sampler:
        if not hasattr(data, "make_sampler"):
            raise ValueError(
                f"The baseline's sampler draws by index, but {type(data).__name__} is a stream. Choose a baseline that "
                "changes the loss, or fair=... for a balanced stream."
            )
        data.make_sampler = instantiate(baseline.sampler)
    for part in ("loss", "adjust"):
        if baseline[part]:
            setattr(model, part, instantiate(baseline[part])(data.train_set.class_counts))


def _report(
    model: Any, data: Any, fair: FairSampling | None, validated: float | None, recovery: Recovery | None
) -> Report:
    drawn, counts = model.drawn.cpu().numpy(), data.train_set.class_counts
    if fair and fair.sampler is None:
        fair = None  # overfit_batches turned it off
    best = Best(int(model.best_epoch), float(model.best_accuracy), data.val_set is data.test_set)
    return make_report(
        classes=data.train_set.classes or [str(label) for label in range(counts.size)],
        images=counts,
        drawn=drawn,
        recall=model.test_recall.numpy(),
        accuracy=model.test_accuracy,
        largest_weight=fair.largest_weight if fair else 1.0,
        effective_sample_size=fair.effective_sample_size if fair else 1.0,
        clipped_mass=fair.clipped_mass if fair else 0.0,
        val_balanced_accuracy=validated,
        best=best if best.epoch else None,
        mean_distance=float(np.mean(recovery.later)) if recovery else None,
        worst_distance=max(recovery.later) if recovery else None,
        recovery=recovery.median if recovery else None,
        errors=_errors(model, validated),
    )


def _errors(model: Any, validated: float | None) -> dict[str, float]:
    """Return the binomial errors of the metrics that have one."""
    test, means = model.errors["test"], {}
    for stage, error in model.errors.items():
        means[stage] = float(error.square().nansum().sqrt() / (~error.isnan()).sum())
    errors = {"balanced_accuracy": means["test"], "worst_class_recall": float(test[np.nanargmin(model.test_recall)])}
    return errors if validated is None else {**errors, "val_balanced_accuracy": means["val"]}


def _quiet() -> None:
    """Silence Lightning's hardware report and advice."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*has `__len__` defined.*")  # DriftStream gives workers their shards
    warnings.filterwarnings("ignore", message=".*treespec.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
