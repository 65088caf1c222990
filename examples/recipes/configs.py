"""The types of `conf/`: dataclasses that Hydra checks every key and value against.

Each mirrors the signature of its target; a test keeps the defaults equal. `conf/<group>/<name>.yaml` names its
dataclass in the defaults list (`/schema/...@_here_`) and states only what differs. Fields that take more than one
kind of value (a number or a schedule) are `Any` here and checked in `recipes/run.py`.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from recipes import schemas


@dataclass
class Fair:
    """`lightning_fair.FairSampling`."""

    _target_: str = "lightning_fair.FairSampling"
    alpha: Any = 8.0
    target_probs: Any = "uniform"
    lambda1: float = 1.0
    lambda2: float = 0.0
    min_prob: float = 1e-6
    horizon: float | None = None
    loss_ema_decay: float = 0.9
    reference: str = "target"
    max_weight: float | None = None
    normalize: bool = False
    exponent: float = 1.0
    labels: Any = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    dataloader: Any = None  # a key or a place
    steps_per_epoch: int | None = None
    empty_classes: str = "error"
    feedback_delay: int | None = None
    seed: int | None = None


@dataclass
class FairOff:
    """No plugin: any key is one too many."""


@dataclass
class Checkpoint:
    """`lightning.pytorch.callbacks.ModelCheckpoint`."""

    _target_: str = "lightning.pytorch.callbacks.ModelCheckpoint"
    dirpath: str | None = None
    filename: str | None = None
    monitor: str | None = None
    save_last: bool | None = None
    save_top_k: int = 1
    mode: str = "min"
    every_n_train_steps: int | None = None
    every_n_epochs: int | None = None


@dataclass
class ProgressBar:
    """`lightning.pytorch.callbacks.TQDMProgressBar`."""

    _target_: str = "lightning.pytorch.callbacks.TQDMProgressBar"
    refresh_rate: int = 1
    leave: bool = False


@dataclass
class Trainer:
    """`lightning.Trainer`: its arguments in 2.4, the oldest version supported, but those that take objects only.

    Left out are `callbacks` and `logger`, which are groups of their own, and `plugins`.
    """

    _target_: str = "lightning.Trainer"
    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    precision: str | int | None = None
    fast_dev_run: int | bool = False
    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: str | None = None
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    limit_predict_batches: int | float | None = None
    overfit_batches: int | float = 0.0
    val_check_interval: int | float | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int | None = None
    log_every_n_steps: int | None = None
    enable_checkpointing: bool | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | str | None = None
    benchmark: bool | None = None
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    profiler: str | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    sync_batchnorm: bool = False
    reload_dataloaders_every_n_epochs: int = 0
    default_root_dir: str | None = None


@dataclass
class TensorBoard:
    """`lightning.pytorch.loggers.TensorBoardLogger`."""

    _target_: str = "lightning.pytorch.loggers.TensorBoardLogger"
    save_dir: str = MISSING
    name: str | None = "lightning_logs"
    version: str | int | None = None
    default_hp_metric: bool = True
    prefix: str = ""


@dataclass
class CSV:
    """`lightning.pytorch.loggers.CSVLogger`."""

    _target_: str = "lightning.pytorch.loggers.CSVLogger"
    save_dir: str = MISSING
    name: str | None = "lightning_logs"
    version: str | int | None = None
    prefix: str = ""
    flush_logs_every_n_steps: int = 100


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


SCHEMAS: dict[str, type] = {
    "digits": schemas.DigitsData,
    "mnist": schemas.MNISTData,
    "cifar10": schemas.CIFAR10Data,
    "cifar100": schemas.CIFAR100Data,
    "arrays": schemas.ArraysData,
    "drift": schemas.DriftData,
    "recovery": schemas.Recovery,
    "small_cnn": schemas.SmallCNN,
    "mlp": schemas.MLP,
    "resnet32": schemas.ResNet32,
    "warp": schemas.Warp,
    "crop_flip": schemas.CropFlip,
    "standardize": schemas.Standardize,
    "sgd": schemas.SGD,
    "warm_up_and_drop": schemas.WarmUpAndDrop,
    "task": schemas.Task,
    "baseline": schemas.Baseline,
    "weighted_sampler": schemas.WeightedSampler,
    "drw": schemas.DRW,
    "balanced_softmax": schemas.BalancedSoftmax,
    "logit_adjustment": schemas.LogitAdjustment,
    "fair": Fair,
    "fair_off": FairOff,
    "checkpoint": Checkpoint,
    "progress_bar": ProgressBar,
    "trainer": Trainer,
    "tensorboard": TensorBoard,
    "csv": CSV,
    "train": Train,
}


def has_optuna() -> bool:
    """Return whether Hydra's Optuna sweeper is installed."""
    try:
        return importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def epoch_at(share: float, *, _root_: Any) -> int:
    """Return the epoch, from 0, at which ``share`` of the training is over: ``${epoch_at:0.8}`` in a config.

    Args:
        share: In [0, 1].

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
            f"A schedule over {share:g} of the training needs trainer.max_epochs, got {epochs}. State it, or the epoch "
            "in place of ${epoch_at:...}."
        )
    return round(share * epochs)


def begin_at(share: float, *, _root_: Any) -> int:
    """Return the epoch, from 0, at which something is to begin: ``epoch_at(share)``, but at the latest the last one.

    ``${begin_at:0.8}`` in a config. Never the first one: `recipes/run.py` refuses a training of one epoch.

    Args:
        share: In (0, 1]. Of 1 it is the last epoch.

    Raises:
        ValueError: If the Trainer has no limit of epochs.

    Example:
        >>> register()
        >>> [OmegaConf.create({"trainer": {"max_epochs": n}, "at": "${begin_at:0.8}"}).at for n in (200, 3, 2)]
        [160, 2, 1]
    """
    last: int = epoch_at(1.0, _root_=_root_) - 1
    return max(1, min(epoch_at(share, _root_=_root_), last))


def register() -> None:
    """Make the schemas and ``${epoch_at:...}`` and ``${begin_at:...}`` known to Hydra.

    Call it before ``hydra.main`` or ``compose``.
    """
    OmegaConf.register_new_resolver("epoch_at", epoch_at, replace=True)
    OmegaConf.register_new_resolver("begin_at", begin_at, replace=True)
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)
    if not has_optuna():
        # In the place of the sweeper that is missing, so that `hparams_search=optuna` can say what to install.
        store.store(group="hydra/sweeper", name="optuna", node={"_target_": "optuna"})
