"""The types of `conf/data`, `conf/model` and `conf/baseline`: what the recipes themselves build.

Registered, with all the others, in `lightning_fair/recipes/configs.py`, which says what they are for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class DigitsData:
    """`recipes.data.DigitsDataModule`."""

    _target_: str = "recipes.data.DigitsDataModule"
    imbalance_ratio: float = 100.0
    kind: str = "exp"
    largest: int = 100
    batch_size: int = 32
    num_workers: int = 0
    seed: int = 0


@dataclass
class DriftData:
    """`recipes.drift.DriftDataModule`."""

    _target_: str = "recipes.drift.DriftDataModule"
    num_classes: int = 10
    imbalance_ratio: float = 100.0
    cycles: int = 10
    turn_size: int = 2048
    buffer: int = 64
    reuse: int = 64
    mnist_root: str | None = None
    batch_size: int = 32
    num_workers: int = 0
    seed: int = 0


@dataclass
class Recovery:
    """`recipes.drift.Recovery`."""

    _target_: str = "recipes.drift.Recovery"
    tolerance: float = 0.02
    horizon: float = 16.0


@dataclass
class MNISTData:
    """`recipes.data.MNISTDataModule`."""

    _target_: str = "recipes.data.MNISTDataModule"
    root: str = "data"
    imbalance_ratio: float = 100.0
    kind: str = "exp"
    largest: int = 5000
    batch_size: int = 128
    num_workers: int = 0
    seed: int = 0


@dataclass
class CIFAR10Data:
    """`recipes.cifar.CIFAR10DataModule`."""

    _target_: str = "recipes.cifar.CIFAR10DataModule"
    root: str = "data"
    imbalance_ratio: float = 100.0
    kind: str = "exp"
    largest: int | None = None
    batch_size: int = 128
    num_workers: int = 0
    seed: int | None = None


@dataclass
class CIFAR100Data(CIFAR10Data):
    """`recipes.cifar.CIFAR100DataModule`."""

    _target_: str = "recipes.cifar.CIFAR100DataModule"


@dataclass
class ArraysData:
    """`recipes.arrays.ArraysDataModule`."""

    _target_: str = "recipes.arrays.ArraysDataModule"
    path: str = MISSING
    imbalance_ratio: float = 1.0
    kind: str = "exp"
    largest: int | None = None
    batch_size: int = 128
    num_workers: int = 0
    seed: int | None = None


@dataclass
class SmallCNN:
    """`recipes.models.small_cnn`."""

    _target_: str = "recipes.models.small_cnn"
    image_size: int = 8
    in_channels: int = 1
    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden: int = 128
    num_classes: int = 10
    dropout: float = 0.0


@dataclass
class MLP:
    """`recipes.models.mlp`."""

    _target_: str = "recipes.models.mlp"
    image_size: int = 8
    in_channels: int = 1
    hidden: list[int] = field(default_factory=lambda: [128])
    num_classes: int = 10
    dropout: float = 0.0


@dataclass
class ResNet32:
    """`recipes.resnet.resnet32`."""

    _target_: str = "recipes.resnet.resnet32"
    in_channels: int = 3
    width: int = 16
    num_classes: int = 10


@dataclass
class Warp:
    """`recipes.augment.RandomWarp`."""

    _target_: str = "recipes.augment.RandomWarp"
    shift: float = 0.125
    distort: float = 0.1


@dataclass
class CropFlip:
    """`recipes.augment.CropFlip`."""

    _target_: str = "recipes.augment.CropFlip"
    padding: int = 4
    flip: float = 0.5


@dataclass
class Standardize:
    """`recipes.augment.Standardize`."""

    _target_: str = "recipes.augment.Standardize"
    channels: int = 3


@dataclass
class SGD:
    """`torch.optim.SGD`, but for `lr` and `weight_decay`: those are the task's."""

    _target_: str = "torch.optim.SGD"
    _partial_: bool = True
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False


@dataclass
class WarmUpAndDrop:
    """`recipes.rates.warm_up_and_drop`."""

    _target_: str = "recipes.rates.warm_up_and_drop"
    _partial_: bool = True
    warm_up: int = 5
    drops: list[int] = field(default_factory=lambda: [160, 180])
    factor: float = 0.01


@dataclass
class Task:
    """`recipes.task.ClassificationTask`."""

    _target_: str = "recipes.task.ClassificationTask"
    net: Any = MISSING
    num_classes: int = 10
    lr: float = 1e-3
    weight_decay: float = 1e-2
    optimizer: Any = None
    scheduler: Any = None
    augment: Any = None
    standardize: Standardize | None = None


@dataclass
class WeightedSampler:
    """`recipes.baselines.weighted_sampler`."""

    _target_: str = "recipes.baselines.weighted_sampler"
    _partial_: bool = True


@dataclass
class DRW:
    """`recipes.baselines.DeferredReweighting`."""

    _target_: str = "recipes.baselines.DeferredReweighting"
    _partial_: bool = True
    begin: int = 160
    beta: float = 0.9999


@dataclass
class BalancedSoftmax:
    """`recipes.baselines.BalancedSoftmax`."""

    _target_: str = "recipes.baselines.BalancedSoftmax"
    _partial_: bool = True
    tau: float = 1.0


@dataclass
class LogitAdjustment:
    """`recipes.baselines.LogitAdjustment`."""

    _target_: str = "recipes.baselines.LogitAdjustment"
    _partial_: bool = True
    tau: float = 1.0


@dataclass
class Baseline:
    """`recipes.baselines`: the part of a run that a baseline replaces.

    `sampler` makes one from the training labels; `loss` (in training) and `adjust` (of the logits, in validation
    and test) are made from the training images of each class.
    """

    sampler: Any = None
    loss: Any = None
    adjust: Any = None
