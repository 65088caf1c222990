"""The types of `conf/`: Hydra checks every key and value against the signatures of the classes that it builds.

A file `conf/<group>/<name>.yaml` names its schema in the defaults list (`/schema/<name>@_here_`) and states only the
values that differ from the defaults. An argument that takes several types (a number or a schedule) has the type `Any`
here, and `recipes/checks.py` checks it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra_zen import builds, make_config
from lightning.pytorch import callbacks, loggers
from omegaconf import MISSING, OmegaConf

from lightning_fair import FairSampling
from recipes import arrays, augment, baselines, classifier, data, drift, lr_schedules, models, recovery, resnet, tabular


@dataclass
class Train:
    """`conf/train.yaml`."""

    seed: int = 1
    threads: int | None = None
    ckpt_path: str | None = None
    output_dir: str = MISSING
    epochs: int = 10
    data: Any = MISSING
    model: Any = MISSING
    fair: Any = MISSING
    baseline: Any = MISSING
    callbacks: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING


# Built from the config alone.
COMPLETE: dict[str, Callable[..., Any]] = {
    "digits": data.DigitsDataModule,
    "mnist": data.MNISTDataModule,
    "cifar10": data.CIFAR10DataModule,
    "cifar100": data.CIFAR100DataModule,
    "arrays": arrays.ArraysDataModule,
    "tabular": tabular.TabularDataModule,
    "drift": drift.DriftDataModule,
    "recovery": recovery.Recovery,
    "small_cnn": models.small_cnn,
    "batch_norm_cnn": models.batch_norm_cnn,
    "mlp": models.mlp,
    "resnet32": resnet.resnet32,
    "warp": augment.RandomWarp,
    "crop_flip": augment.CropFlip,
    "standardize": augment.Standardize,
    "classifier": classifier.Classifier,
    "fair": FairSampling,
    "checkpoint": callbacks.ModelCheckpoint,
    "progress_bar": callbacks.TQDMProgressBar,
    "trainer": L.Trainer,
    "tensorboard": loggers.TensorBoardLogger,
    "csv": loggers.CSVLogger,
}
# Completed in the run: by parameters, an optimizer, labels or class counts.
PARTIAL: dict[str, Callable[..., Any]] = {
    "sgd": torch.optim.SGD,
    "cosine": lr_schedules.cosine,
    "warm_up_and_drop": lr_schedules.warm_up_and_drop,
    "weighted_sampler": baselines.weighted_sampler,
    "drw": baselines.DeferredReweighting,
    "balanced_softmax": baselines.BalancedSoftmax,
    "focal": baselines.FocalLoss,
    "logit_adjustment": baselines.LogitAdjustment,
}
# Arguments that other parts of the config set: the groups `callbacks` and `logger`, and the classifier.
EXCLUDED = {"trainer": ["callbacks", "logger", "plugins"], "sgd": ["lr", "weight_decay"]}
# Settings that do not change what is trained: neither in the name of a run nor in TensorBoard's HParams.
_SILENT = re.compile(
    r"[+~]*(callbacks|ckpt_path|data\.root|logger|output_dir|threads|trainer\.(accelerator|enable_\w+))([.@=]|$)"
)


@functools.cache
def schemas() -> dict[str, Any]:
    """Return the schema of each name: the arguments of a class or function, with their types and defaults."""
    built: dict[str, Any] = {
        name: builds(
            target,
            populate_full_signature=True,
            zen_partial=name in PARTIAL or None,
            zen_exclude=EXCLUDED.get(name, []),
        )
        for name, target in {**COMPLETE, **PARTIAL}.items()
    }
    return {
        **built,
        "train": Train,
        "fair_off": make_config(),  # no plugin, so no settings
        "baseline": make_config(sampler=None, loss=None, adjust=None),  # parts that replace those of a plain run
    }


def has_optuna() -> bool:
    """Return whether Hydra's Optuna sweeper is installed."""
    return _has_plugin("hydra_optuna_sweeper")


def has_joblib() -> bool:
    """Return whether Hydra's joblib launcher is installed."""
    return _has_plugin("hydra_joblib_launcher")


def _has_plugin(name: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{name}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def epoch_at(fraction: float, *, _root_: Any) -> int:
    """Return the epoch, from 0, at which a fraction of the training is over: ``${epoch_at:0.8}`` in a config.

    Args:
        fraction: In [0, 1].

    Raises:
        ValueError: If the Trainer has no limit of epochs.

    Example:
        >>> register()
        >>> cfg = OmegaConf.create({"trainer": {"max_epochs": 200}, "begin": "${epoch_at:0.8}"})
        >>> cfg.begin
        160
    """
    epochs: int | None = _root_.trainer.max_epochs
    if epochs is None or epochs < 0:
        raise ValueError(
            f"A schedule over {fraction:g} of the training needs trainer.max_epochs, got {epochs}. Set it, or replace "
            "${epoch_at:...} by an epoch."
        )
    return round(fraction * epochs)


def begin_at(fraction: float, *, _root_: Any) -> int:
    """Return ``epoch_at(fraction)``, at least 1 and at most the last epoch: ``${begin_at:0.8}`` in a config.

    Example:
        >>> register()
        >>> [OmegaConf.create({"trainer": {"max_epochs": n}, "at": "${begin_at:0.8}"}).at for n in (200, 3, 2)]
        [160, 2, 1]
    """
    last = epoch_at(1.0, _root_=_root_) - 1
    return max(1, min(epoch_at(fraction, _root_=_root_), last))


def choices() -> str:
    """Return the table of ``conf/README.md`` as plain text: ``${choices:}`` in the text of ``--help``."""
    lines = (Path(__file__).parents[2] / "conf" / "README.md").read_text(encoding="utf-8").replace("`", "").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return "\n".join(f"{group:15}{choice:26}{meaning}" for group, choice, meaning in rows)


def run_name() -> str:
    """Return the name of a run in TensorBoard, ``${run_name:}`` in a config: what was set on the command line.

    It is empty without settings.
    """
    return name_of(HydraConfig.get().overrides.task) if HydraConfig.initialized() else ""


def name_of(overrides: Sequence[str]) -> str:
    """Return settings as the name of a folder on any file system, at most 100 characters.

    Those of the plugin and the baseline come first. Settings that do not change the training are left out.

    Example:
        >>> name_of(["threads=1", "trainer.max_epochs=20", "fair.alpha=2", "data.path=my data/x.npz"])
        'fair.alpha=2,trainer.max_epochs=20,data.path=my-data-x.npz'
    """
    said = [override for override in overrides if not is_silent(override)]
    said.sort(key=lambda override: not override.lstrip("+~").startswith(("fair", "baseline")))
    words = [re.sub(r"[^\w.=,+-]+", "-", override, flags=re.ASCII)[:60] for override in said]
    name = textwrap.shorten(" ".join(words), 100, placeholder=" and-more", break_on_hyphens=False)
    return name.replace(" ", ",").rstrip(".")


def is_silent(override: str) -> bool:
    """Return whether a setting does not change what is trained.

    Example:
        >>> is_silent("++threads=2"), is_silent("~logger"), is_silent("loggerx=1")
        (True, True, False)
    """
    return _SILENT.match(override) is not None


def register() -> None:
    """Register the schemas and the resolvers ``epoch_at``, ``begin_at``, ``choices`` and ``run_name`` with Hydra.

    Call it before ``hydra.main`` or ``compose``.
    """
    OmegaConf.register_new_resolver("epoch_at", epoch_at, replace=True)
    OmegaConf.register_new_resolver("begin_at", begin_at, replace=True)
    OmegaConf.register_new_resolver("choices", choices, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    store = ConfigStore.instance()
    for name, schema in schemas().items():
        store.store(group="schema", name=name, node=schema)
    # Placeholders for a missing sweeper and launcher, so that the callbacks can say which package to install.
    if not has_optuna():
        store.store(group="hydra/sweeper", name="optuna", node={"_target_": "optuna"})
    if not has_joblib():
        store.store(group="hydra/launcher", name="joblib", node={"_target_": "joblib", "n_jobs": -1})
