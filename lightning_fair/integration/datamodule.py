"""A ``LightningDataModule`` with a fair training loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.overrides import is_overridden
from torch.utils.data import DataLoader, Dataset

from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.dataloaders import checks
from lightning_fair.dataloaders.fair_loader import make_fair
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_scan import find_loader_labels
from lightning_fair.integration.callback import FairSampling
from lightning_fair.integration.lightning_packages import LightningDataModule, check_trainer, package_of
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

if TYPE_CHECKING:
    import lightning.pytorch as L

_ATTRIBUTES = ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices")
_STATE_HOOKS = {"state_dict", "load_state_dict", "on_exception"}


class FairDataModule(LightningDataModule):
    """Wraps a DataModule, or a data set, so that its training loader is fair.

    In a Trainer it installs the callback :class:`~lightning_fair.FairSampling`, which then owns the sampler. Without a
    Trainer ``train_dataloader()`` is fair too, and you call ``controller.step_update``. The other loaders, hooks,
    state and attributes are the wrapped module's own.

    Args:
        data: A ``LightningDataModule``, or a map-style training data set.
        fair: Settings. None: the Trainer's ``FairSampling`` if it has one, else ``FairSampling()``.
        batch_size: Samples of a training batch on each rank. Required with a data set, and for a data set only.
        val: Validation data set; for a data set only.
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
        arguments = {"batch_size": batch_size, "val": val, "test": test}
        package = package_of(data, "LightningDataModule")
        self.wrapped: Any
        self._trainer: L.Trainer | None = None
        if package is not None:
            given = {name: value for name, value in arguments.items() if value is not None} | loader
            if given:
                kind, names = type(data).__name__, ", ".join(given)
                raise TypeError(f"{kind} makes its own loaders: set {names} there, not in FairDataModule.")
            self.wrapped = data
        elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            if batch_size is None:
                raise ValueError("FairDataModule around a data set needs batch_size, for example batch_size=128.")
            self.wrapped = _DatasetModule(data, val, test, {"batch_size": batch_size, **loader})
        else:
            raise TypeError(
                f"FairDataModule wraps a LightningDataModule or a map-style data set, got {type(data).__name__}."
            )
        self.fair = fair
        self._own = fair or FairSampling()
        self._sampler: FeedbackBatchSampler | None = None
        self._label_check: LabelCheck | None = None
        # Lightning asks whether a data module overrides a hook, so the wrapped module's are shown only if it does.
        if package is None:
            overridden = [name for name in ("val_dataloader", "test_dataloader") if hasattr(self.wrapped, name)]
        else:
            hooks = {name for name in vars(package.core.hooks.DataHooks) if name[0] != "_"} | _STATE_HOOKS
            hooks -= vars(FairDataModule).keys()
            overridden = [name for name in hooks if is_overridden(name, self.wrapped, package.LightningDataModule)]
        for name in (*_ATTRIBUTES, *overridden):
            setattr(self, name, getattr(self.wrapped, name))

    @property
    def trainer(self) -> L.Trainer | None:
        """The Trainer of this module and of the wrapped one."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        if trainer is not None:
            check_trainer(trainer)
            package, wrapped = package_of(trainer, "Trainer"), package_of(self.wrapped, "LightningDataModule")
            if wrapped not in (None, package):
                raise TypeError(
                    f"The Trainer is of {package.__name__}, and {type(self.wrapped).__name__} is of "
                    f"{wrapped.__name__}. Import both from the same package."
                )
        self._trainer = trainer
        self.wrapped.trainer = trainer

    @property
    def sampler(self) -> DrawSource | None:
        """The sampler of the training loader, in a Trainer the callback's; None before the loader is made."""
        callback = self._callback()
        return self._sampler if callback is None or callback.sampler is None else callback.sampler

    @property
    def controller(self) -> FeedbackController | None:
        """The sampler's controller; None before the loader is made."""
        return None if self.sampler is None else self.sampler.controller

    def setup(self, stage: str) -> None:
        """Install the callback if ``stage`` is ``"fit"``, and set up the wrapped module."""
        if stage == "fit" and self.trainer is not None:
            self._install(self.trainer)
        self.wrapped.setup(stage)

    def _install(self, trainer: L.Trainer) -> None:
        theirs = self._callback()
        if theirs is None:
            self._own._installed_by_datamodule = True
            trainer.callbacks.append(self._own)  # type: ignore[attr-defined]
        elif self.fair is not None and theirs is not self.fair:
            raise ValueError("Both Trainer(callbacks=[...]) and FairDataModule(fair=...) have FairSampling. Keep one.")

    def train_dataloader(self) -> Any:
        """Return the training loader: fair, or in a Trainer the wrapped module's, which the callback makes fair."""
        loader, settings = self.wrapped.train_dataloader(), self._own.settings
        if self._callback() is not None or checks.is_stream(loader):  # a FairStream is fair by itself
            return loader
        checks.check_loader(loader)
        if self._sampler is None:
            labels = find_loader_labels(loader, settings.labels, settings.stated_classes)
            size = checks.batch_size(loader)
            steps = settings.steps_per_epoch or len(loader)
            self._sampler = settings.make_sampler(labels, size, steps, dataset=loader.dataset)
            self._label_check = LabelCheck(
                self._sampler.controller.num_classes,
                are_groups=settings.has_chosen_labels,
                were_numbered=labels.values is not None,
            )
        return make_fair(loader, self._sampler, label_check=self._label_check)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet: pickling asks before __init__ has run
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def _callback(self) -> FairSampling | None:
        callbacks = self.trainer.callbacks if self.trainer is not None else []  # type: ignore[attr-defined]
        fair = (callback for callback in callbacks if isinstance(callback, FairSampling))
        # The callback of another FairDataModule removes itself in its `setup`.
        return next((c for c in fair if c is self._own or not c._installed_by_datamodule), None)


class _DatasetModule:
    """Plain loaders over plain data sets."""

    prepare_data_per_node, allow_zero_length_dataloader_with_multiple_devices = True, False
    _log_hyperparams = False
    trainer: L.Trainer | None = None

    def __init__(self, train: Any, val: Dataset[Any] | None, test: Dataset[Any] | None, loader: dict[str, Any]) -> None:
        loader.pop("shuffle", None)  # FairSampling shuffles the training data, and the others keep their order
        self._train, self._loader = train, loader
        for name, dataset in (("val_dataloader", val), ("test_dataloader", test)):
            if dataset is not None:
                setattr(self, name, self._in_order(dataset))

    def setup(self, stage: str) -> None:
        """Do nothing: the data sets are there."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._train, **self._loader)

    def _in_order(self, dataset: Dataset[Any]) -> Callable[[], DataLoader[Any]]:
        settings = {name: value for name, value in self._loader.items() if name not in ("drop_last", "sampler")}

        # Not a `partial`, because Lightning reads the code of functions that override its hooks.
        def dataloader() -> DataLoader[Any]:
            return DataLoader(dataset, **settings)

        return dataloader
