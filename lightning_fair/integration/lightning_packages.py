"""Lightning has two packages, ``lightning.pytorch`` and ``pytorch_lightning``, with the same classes, each its own.

Importing lightning_fair imports neither. Its callback and its data module become subclasses of the classes of each
package that the program imports, before or afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_OLDEST = (2, 5)


def imported_packages() -> list[ModuleType]:
    """Return the Lightning packages that have been imported; none that is only in the middle of it."""
    modules = (sys.modules.get(name) for name in _NAMES)
    return [module for module in modules if module is not None and hasattr(module, "Trainer")]


def package_of(instance: object, kind: str) -> Any:
    """Return the package whose class ``kind``, for example ``"Trainer"``, has the instance; None if neither has."""
    return next((package for package in imported_packages() if isinstance(instance, getattr(package, kind))), None)


def check_trainer(trainer: object) -> None:
    """Check that ``trainer`` is a Trainer that lightning_fair can work with.

    Raises:
        TypeError: If it is the Trainer of neither package.
        RuntimeError: If its package is too old.
    """
    package = package_of(trainer, "Trainer")
    if package is None:
        raise TypeError(f"lightning_fair works with a Trainer of {' or '.join(_NAMES)}, got {type(trainer).__name__}.")
    version = package.__version__
    if tuple(int(number) for number in version.split(".")[:2]) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise RuntimeError(
            f"lightning_fair works with {package.__name__} {oldest} or newer, and {version} is installed. "
            f'Run pip install --upgrade "{package.__name__.split(".")[0]}>={oldest}".'
        )


class _Root:
    """A base besides ``object``: without one, Python cannot change the bases of a class."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Join what the import hook has missed, such as a package that was imported half when it was set."""
        _join_packages()
        return super().__new__(cls)


if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
else:

    class Callback(_Root):
        """``Callback`` of every Lightning package that has been imported."""

    class LightningDataModule(_Root):
        """``LightningDataModule`` of every Lightning package that has been imported."""


def _join_packages() -> None:
    """Give the two classes those of the packages imported so far as bases."""
    for base in (Callback, LightningDataModule):
        bases = (*(getattr(package, base.__name__) for package in imported_packages()), _Root)
        if base.__bases__ != bases:
            base.__bases__ = bases


class _JoinOnImport(MetaPathFinder):
    """Lets a package be found as usual, and joins it as soon as it has been imported."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _NAMES:
            return None
        others = [finder for finder in sys.meta_path if type(finder).__name__ != type(self).__name__]
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        execute = getattr(spec and spec.loader, "exec_module", None)
        if execute is not None and not isinstance(execute, partial):
            with suppress(AttributeError):  # a loader without attributes of its own
                spec.loader.exec_module = partial(_execute_and_join, execute)  # type: ignore[union-attr, method-assign]
        return spec


def _execute_and_join(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _join_packages()


_join_packages()
sys.meta_path.insert(0, _JoinOnImport())
