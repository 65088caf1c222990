"""The types of `conf/`: dataclasses that Hydra checks every key and value against.

Each mirrors the signature of its target; a test keeps the defaults equal. `conf/<group>/<name>.yaml` names its
dataclass in the defaults list (`/schema/...@_here_`) and states only what differs. Fields that take more than one
kind of value (a number or a schedule) are `Any` here and checked in `recipes/run.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class DigitsData:
    """`lightning_fair.recipes.data.DigitsDataModule`."""

    _target_: str = "lightning_fair.recipes.data.DigitsDataModule"
    imbalance_ratio: float = 100.0
    kind: str = "exp"
    largest: int = 100
    batch_size: int = 32
    num_workers: int = 0
    seed: int = 0


@dataclass
class MNISTData:
    """`lightning_fair.recipes.data.MNISTDataModule`."""

    _target_: str = "lightning_fair.recipes.data.MNISTDataModule"
    root: str = "data"
    imbalance_ratio: float = 100.0
    kind: str = "exp"
    largest: int = 5000
    batch_size: int = 128
    num_workers: int = 0
    seed: int = 0


@dataclass
class SmallCNN:
    """`lightning_fair.recipes.models.small_cnn`."""

    _target_: str = "lightning_fair.recipes.models.small_cnn"
    image_size: int = 8
    in_channels: int = 1
    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden: int = 128
    num_classes: int = 10
    dropout: float = 0.0


@dataclass
class MLP:
    """`lightning_fair.recipes.models.mlp`."""

    _target_: str = "lightning_fair.recipes.models.mlp"
    image_size: int = 8
    in_channels: int = 1
    hidden: list[int] = field(default_factory=lambda: [128])
    num_classes: int = 10
    dropout: float = 0.0


@dataclass
class Warp:
    """`lightning_fair.recipes.augment.RandomWarp`."""

    _target_: str = "lightning_fair.recipes.augment.RandomWarp"
    shift: float = 0.125
    distort: float = 0.1


@dataclass
class Task:
    """`lightning_fair.recipes.task.ClassificationTask`."""

    _target_: str = "lightning_fair.recipes.task.ClassificationTask"
    net: Any = MISSING
    num_classes: int = 10
    lr: float = 1e-3
    weight_decay: float = 1e-2
    augment: Warp | None = None


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
    ewma_beta: float = 0.9
    deficit: str = "relative"
    reference: str = "target"
    max_weight: float | None = None
    normalize: bool = False
    exponent: float = 1.0
    labels: Any = None
    num_classes: int | None = None
    class_names: list[str] | None = None
    loader: Any = None  # a key or a place
    steps_per_epoch: int | None = None
    missing: str = "error"
    draw: str = "systematic"
    lag: int | None = None
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
    data: Any = MISSING
    model: Any = MISSING
    fair: Any = MISSING
    callbacks: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING


SCHEMAS: dict[str, type] = {
    "digits": DigitsData,
    "mnist": MNISTData,
    "small_cnn": SmallCNN,
    "mlp": MLP,
    "warp": Warp,
    "task": Task,
    "fair": Fair,
    "fair_off": FairOff,
    "checkpoint": Checkpoint,
    "progress_bar": ProgressBar,
    "trainer": Trainer,
    "tensorboard": TensorBoard,
    "csv": CSV,
    "train": Train,
}


def register() -> None:
    """Make the schemas known to Hydra; call it before ``hydra.main`` or ``compose``."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(group="schema", name=name, node=schema)
