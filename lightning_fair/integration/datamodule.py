"""A ``LightningDataModule`` with a fair training loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from inspect import getattr_static, signature
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_fair.common.checks import check, check_type, show
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.integration.callback import FairSampling
from lightning_fair.integration.lightning_packages import (
    LightningDataModule,
    check_trainer,
    imported_packages,
    package_of,
)
from lightning_fair.integration.loader_setup import make_loader_fair_alone
from lightning_fair.integration.run import Run

if TYPE_CHECKING:
    import lightning.pytorch as L

_STATE = {"wrapped", "fair", "_default", "_run"}
_LOADER_ARGUMENTS = signature(DataLoader.__init__).parameters.keys() - {"self", "dataset"}
_DATA_HOOKS = ("prepare_data", "teardown", "val_dataloader", "test_dataloader", "predict_dataloader")
_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_STATE_HOOKS = ("state_dict", "load_state_dict", "on_exception")


def _forward(name: str) -> Callable[..., Any]:
    def hook(self: FairDataModule, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.wrapped, name)(*args, **kwargs)

    return hook


class _ForwardsHooks(LightningDataModule):
    """The wrapped module's hooks, for ``super()`` in the hooks of a subclass."""


for _name in (*_DATA_HOOKS, *_BATCH_HOOKS, *_STATE_HOOKS):
    setattr(_ForwardsHooks, _name, _forward(_name))


class FairDataModule(_ForwardsHooks):
    """Wraps a DataModule, or a data set, so that its training loader is fair.

    In a Trainer it installs the callback :class:`~lightning_fair.FairSampling`, which then owns the sampler. Outside of
    a fit ``train_dataloader()`` is fair too, with a sampler of its own, and you call ``controller.step_update``;
    ``setup("fit")`` starts it anew. The other loaders, hooks, state and attributes are the wrapped module's, also those
    that you set: ``data.fold = 1``. Around a data set they are ``data``, ``val``, ``test`` and the loaders' arguments.
    The names that a subclass defines are its own.

    Args:
        data: A ``LightningDataModule``, or a map-style training data set.
        fair: Settings. None: the Trainer's ``FairSampling`` if it has one, else ``FairSampling()``.
        batch_size: Samples of a training batch on each rank. Required with a data set, and for a data set only.
        val: Validation data set; for a data set only. Lightning's batch-size finder asks for it if the module has a
            ``validation_step``.
        test: Test data set; for a data set only.
        **loader: Further arguments of the loaders (``num_workers``, ``collate_fn``, ``pin_memory``, ...); for a data
            set only.

    Raises:
        TypeError: If ``data`` is neither, or loader arguments are given with a DataModule.
        ValueError: If a data set is given without ``batch_size``.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.arange(100.0), torch.tensor([0] * 98 + [1] * 2))
        >>> data = FairDataModule(dataset, batch_size=4)
        >>> x, y = next(iter(data.train_dataloader()))
        >>> y.bincount().tolist()
        [2, 2]
    """

    _own: ClassVar[frozenset[str]]  # names that are not the wrapped module's
    _added: ClassVar[frozenset[str]] = frozenset()  # those of them that subclasses have added

    def __init__(
        self,
        data: L.LightningDataModule | Dataset[Any],
        *,
        fair: FairSampling | None = None,
        batch_size: int | None = None,
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        **loader: Any,
    ) -> None:
        check_type("fair", fair, (FairSampling, NoneType), "a FairSampling or None")
        if isinstance(data, FairDataModule):
            raise TypeError("data is a FairDataModule, which is fair already: use that one, or wrap what it wraps.")
        arguments = {"batch_size": batch_size, "val": val, "test": test}
        self.wrapped: Any
        if package_of(data, "LightningDataModule") is not None:
            given = {name: value for name, value in arguments.items() if value is not None} | loader
            if given:
                kind, names = type(data).__name__, ", ".join(given)
                raise TypeError(f"{kind} makes its own loaders: set {names} there, not in FairDataModule.")
            self.wrapped = data
        elif _is_dataset(data):
            if batch_size is None:
                raise ValueError("FairDataModule around a data set needs batch_size, for example batch_size=128.")
            arguments["batch_size"] = check("batch_size", batch_size)
            for name, dataset in (("val", val), ("test", test)):
                if not (_is_dataset(dataset) or isinstance(dataset, (IterableDataset, NoneType))):
                    raise TypeError(f"{name} must be a data set or None, got {show(dataset)}.")
            if unknown := loader.keys() - _LOADER_ARGUMENTS:
                raise TypeError(f"DataLoader has no argument {', '.join(sorted(unknown))}.")
            self.wrapped = _DatasetModule(data=data, **arguments, **loader)
        else:
            raise TypeError(
                "data must be a LightningDataModule, or a map-style data set (__getitem__ and __len__), got "
                f"{show(data)}."
            )
        self.fair = fair
        self._default = FairSampling()  # if neither the Trainer nor the user has one
        self._run: Run | None = None  # of the loop without a Trainer

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        theirs = {"builtins", "lightning", "pytorch_lightning"}
        bases = (base for base in cls.__mro__ if base.__module__.split(".")[0] not in theirs)
        cls._own = cls._own.union(*(vars(base).keys() for base in bases if base is not _ForwardsHooks))
        cls._added = cls._own - FairDataModule._own

    # Lightning's class, which is a base, has all hooks and hyperparameters too; the wrapped module's are asked for. So
    # Lightning also sees which hooks the wrapped module overrides.
    def __getattribute__(self, name: str) -> Any:
        attribute = super().__getattribute__
        if name.startswith("__") or name in type(self)._own or name in (state := attribute("__dict__")):
            return attribute(name)
        return getattr(self.wrapped, name) if "wrapped" in state else attribute(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in type(self)._own or "wrapped" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.wrapped, name)  # raises the wrapped module's error

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name in _STATE or name in type(self)._added or isinstance(getattr(type(self), name, None), property)
        if is_own or name in vars(self) or "wrapped" not in vars(self):
            super().__setattr__(name, value)
        else:
            setattr(self.wrapped, name, value)

    def __delattr__(self, name: str) -> None:
        if name in vars(self):
            super().__delattr__(name)
        else:
            delattr(self.wrapped, name)

    def __copy__(self) -> FairDataModule:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self), wrapped=copy(self.wrapped))
        return copied

    def __str__(self) -> str:
        return str(self.wrapped)

    @property
    def trainer(self) -> L.Trainer | None:
        """The Trainer of the wrapped module."""
        return getattr(self.wrapped, "trainer", None)

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        if trainer is not None:
            check_trainer(trainer)
            package, wrapped = package_of(trainer, "Trainer"), package_of(self.wrapped, "LightningDataModule")
            if wrapped is not None and not isinstance(self.wrapped, package.LightningDataModule):
                raise TypeError(
                    f"The Trainer is of {package.__name__}, and {type(self.wrapped).__name__} is of "
                    f"{wrapped.__name__}. Import both from the same package."
                )
        self.wrapped.trainer = trainer

    @property
    def sampler(self) -> DrawSource | None:
        """The sampler of the newest training loader, in a Trainer the callback's; None before the loader is made."""
        return self._callback.sampler if self._run is None else self._run.source

    @property
    def controller(self) -> FeedbackController | None:
        """The sampler's controller; None before the loader is made."""
        return None if self.sampler is None else self.sampler.controller

    @property
    def _callback(self) -> FairSampling:
        """The Trainer's callback, or that of this module."""
        callbacks = [] if self.trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        fair = (callback for callback in callbacks if isinstance(callback, FairSampling))
        own = self.fair or self._default
        # The callback of another FairDataModule removes itself in its `setup`.
        return next((c for c in fair if c is own or not c.is_installed_in(self.trainer)), own)

    def setup(self, stage: str | None = None) -> None:
        """Install the callback if ``stage`` is ``"fit"`` or None, and set up the wrapped module."""
        if stage in ("fit", None):
            self._run = None
            self._install()
        self.wrapped.setup(stage)

    def _install(self) -> None:
        if self.trainer is None:
            return
        callback, callbacks = self._callback, self.trainer.callbacks  # type: ignore[attr-defined]
        if callback not in callbacks:
            callback._installed_in = ref(self.trainer)
            callbacks.append(callback)
        elif self.fair is not None and callback is not self.fair:
            raise ValueError("Both Trainer(callbacks=[...]) and FairDataModule(fair=...) have FairSampling. Keep one.")

    def train_dataloader(self) -> Any:
        """Return the training loader: fair, or during a fit the wrapped module's, which the callback makes fair."""
        loader, state = self.wrapped.train_dataloader(), getattr(self.trainer, "state", None)
        if state is not None and state.fn == "fit" and state.status == "running":
            return loader
        if self._run is None:
            self._run = Run(self._callback.settings)
        return make_loader_fair_alone(self._run, loader)


FairDataModule._own = frozenset(vars(FairDataModule)) | _STATE


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (str, bytes, Mapping))


class _DatasetModule:
    """Plain loaders over plain data sets; everything else is as in Lightning's own class.

    Its attributes are ``data``, ``val``, ``test`` and the arguments of the loaders.
    """

    prepare_data_per_node, allow_zero_length_dataloader_with_multiple_devices = True, False
    _log_hyperparams = False
    trainer: L.Trainer | None = None

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        packages = imported_packages()[:1] if self.trainer is None else [package_of(self.trainer, "Trainer")]
        kind = packages[0].LightningDataModule if packages else object
        if name.startswith("__") or not hasattr(kind, name):
            raise AttributeError(f"FairDataModule around a data set has no attribute {name!r}.")
        # Lightning asks which hooks are overridden, so those that are not must be its own.
        attribute = getattr_static(kind, name)
        return attribute.__get__(self, type(self)) if hasattr(attribute, "__get__") else attribute

    def setup(self, stage: str | None) -> None:
        """Do nothing: the data sets are there."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, **self._settings())

    @property
    def val_dataloader(self) -> Callable[[], DataLoader[Any]]:
        return self._in_order(self.val)

    @property
    def test_dataloader(self) -> Callable[[], DataLoader[Any]]:
        return self._in_order(self.test)

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in _LOADER_ARGUMENTS}

    def _in_order(self, dataset: Dataset[Any] | None) -> Callable[[], DataLoader[Any]]:
        if dataset is None:
            raise AttributeError  # the hook is not overridden

        # Not a `partial`, because Lightning reads the code of functions that override its hooks.
        def dataloader() -> DataLoader[Any]:
            left_out = ("shuffle", "drop_last", "sampler")
            return DataLoader(dataset, **{k: v for k, v in self._settings().items() if k not in left_out})

        return dataloader
