"""Checks of a config that Hydra cannot make, and of a config against its data, before a run writes anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Real
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_fair import FairSampling
from lightning_fair.schedules import Shift
from recipes.configs import Train


def check_config(cfg: DictConfig) -> None:
    """Check the values that have no type in the schema, and the combinations that would give a wrong report.

    Raises:
        TypeError: If ``fair.alpha`` or ``fair.target_probs`` has a wrong type.
        ValueError: If nothing reads a key, the seed or the threads are out of range, a baseline is used together with
            the plugin, or the Trainer's settings leave no report.

    Example:
        >>> check_config(OmegaConf.create({"fair": {"alpha": "fast", "target_probs": "uniform"}}))
        Traceback (most recent call last):
        TypeError: fair.alpha must be a number or a schedule {_target_: lightning_fair.schedules...}, got 'fast'.
    """
    _check_keys(cfg)
    for name, least in (("seed", 0), ("threads", 1)):
        value = cfg.get(name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    if cfg.fair and baseline_names(cfg):
        raise ValueError(
            f"A baseline ({', '.join(baseline_names(cfg))}) must be used with fair=off, because together with "
            "FairSampling it would correct the class mix twice. Remove fair=..., or set baseline=none."
        )
    strategy = str(OmegaConf.select(cfg, "trainer.strategy"))
    if re.search("fork|spawn|notebook", strategy):
        raise ValueError(
            f"trainer.strategy={strategy} trains in other processes, from which no report comes back. For several "
            "devices set trainer.strategy=ddp."
        )
    if OmegaConf.select(cfg, "trainer.limit_test_batches") == 0:
        raise ValueError("trainer.limit_test_batches must be more than 0, because the report needs a test, got 0.")
    _check_fair(OmegaConf.to_container(cfg.fair, resolve=True) if cfg.fair else {})


def _check_keys(cfg: DictConfig) -> None:
    """Refuse keys that were added with ``+`` and that nothing reads; a class checks the names of its own arguments."""
    unread = [key for key in cfg if key not in (*Train.__dataclass_fields__, "hydra")]
    unread += [f"baseline.{key}" for key in cfg.get("baseline") or {} if key not in ("sampler", "loss", "adjust")]
    unread += [f"fair.{key}" for key in cfg.get("fair") or {} if "_target_" not in cfg.fair and "baseline" in cfg]
    for group in ("callbacks", "logger", "model"):
        for key, part in (cfg.get(group) or {}).items():
            is_value = not isinstance(part, DictConfig)
            if (part is not None and group != "model") if is_value else "_target_" not in part:
                unread.append(f"{group}.{key}")
    for key in map(str, unread):
        name = key.rpartition(".")[2]
        groups = [str(group) for group, part in cfg.items() if isinstance(part, DictConfig) and name in part]
        meant = [f"{group}.{name}" for group in groups if f"{group}.{name}" != key]
        raise ValueError(
            f"Nothing reads {key}, got {key}={OmegaConf.select(cfg, key)}. "
            + (f"Set {' or '.join(meant)}." if meant else "Remove it; `--cfg job` shows all settings.")
        )


def _check_fair(fair: Any) -> None:
    alpha, target = fair.get("alpha", 0.0), fair.get("target_probs")
    if not (_is_number(alpha) or (isinstance(alpha, Mapping) and "_target_" in alpha)):
        raise TypeError(
            f"fair.alpha must be a number or a schedule {{_target_: lightning_fair.schedules...}}, got {alpha!r}."
        )
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


def baseline_names(cfg: DictConfig) -> list[str]:
    """Return the names of the parts that a baseline replaces; none for ``baseline=none``."""
    parts = cfg.get("baseline") or {}
    return [part._target_.rpartition(".")[2] for part in parts.values() if part]


def check_model(model: DictConfig, data: Any) -> None:
    """Check that the model fits the classes and the images of a data module that is set up.

    Raises:
        ValueError: If the number of classes or channels or the size of the images differs.
    """
    K = data.train_set.class_counts.size
    values = {key: OmegaConf.select(model, key) for key in ("num_classes", "net.num_classes")}
    wrong = [f"model.{key}={value}" for key, value in values.items() if value not in (None, K)]
    if wrong:
        raise ValueError(
            f"The data have {K} classes, but the model is for another number: {', '.join(wrong)}. Set "
            f"model.num_classes={K}; model.net.num_classes follows unless it is set."
        )
    channels, height, width = next(iter(data.train_set))[0].shape
    expected = {"net.in_channels": channels, "standardize.channels": channels, "net.image_size": height}
    values = {key: OmegaConf.select(model, key) for key in expected}
    if values["net.image_size"] is not None and height != width:
        raise ValueError(
            f"The images are {height} x {width} pixels, but this model is for square ones. Set model=resnet32."
        )
    wrong = [key for key, value in values.items() if value not in (None, expected[key])]
    if wrong:
        raise ValueError(
            f"The images are {channels} x {height} x {width} (channels, height, width), but the model has "
            f"{', '.join(f'{key}={values[key]}' for key in wrong)}. Set "
            f"{' '.join(f'model.{key}={expected[key]}' for key in wrong)}, or choose another model=..."
        )


def check_feedback(data: Any, fair: FairSampling | None) -> None:
    """Check that nothing that is measured on the test set, or on the training set, is fed back.

    Raises:
        ValueError: If ``fair.feedback`` is a metric of the validation, and this is on the test or the training set.
    """
    if not fair or fair.settings.feedback == "train":
        return
    if getattr(data, "add_validation", False):
        raise ValueError(
            f"fair.feedback={fair.settings.feedback} needs images that are not trained on, and data.add_validation "
            "trains on those of the validation. Set data.add_validation=false, or fair.feedback=train."
        )
    if data.val_set is data.test_set:
        raise ValueError(
            f"fair.feedback={fair.settings.feedback} would train on the test data, because with {type(data).__name__} "
            "validation is on the test set. Set fair.feedback=train, which takes the losses of the training."
        )


def check_schedules(cfg: DictConfig, fair: FairSampling | None) -> None:
    """Check that nothing is to begin in a later epoch if there is only one.

    Raises:
        ValueError: If the target or the loss of a training of one epoch changes by epochs.
    """
    if cfg.trainer.max_epochs != 1:
        return
    late = []
    if fair and isinstance(fair.settings.target_probs, Shift) and fair.settings.target_probs.progress.by_epoch:
        late.append("a target that moves by epochs (fair.target_probs)")
    if OmegaConf.select(cfg, "baseline.loss.begin"):
        late.append(f"a loss that changes in epoch {cfg.baseline.loss.begin} (baseline.loss.begin)")
    if late:
        raise ValueError(
            f"With trainer.max_epochs=1 {' and '.join(late)} would change nothing. Set trainer.max_epochs=2 or more, "
            "or choose another fair=... or baseline=..."
        )
