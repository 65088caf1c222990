"""Lightning has two packages, ``lightning.pytorch`` and ``pytorch_lightning``, with the same classes, each its own.

Importing lightning_fair imports neither. Its classes join the packages that the program imports, before or afterwards.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

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


class _JoinsLightning:
    """Base of classes that are Lightning's, of every package that has been imported, also after they were made.

    A package may be imported after an instance was made. The first time that Lightning asks what the instance is, or
    for an attribute that it does not have, is early enough to add the package's class to the bases.
    """

    _lightning_class: ClassVar[str]

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # `isinstance` asks for it if the type is not a subclass
        own = type(self)
        # Python compares another class than the type's own, so the answer is right the first time too.
        return type(own.__name__, (own,), {"__qualname__": own.__qualname__}) if join_lightning(own) else own

    def __reduce_ex__(self, protocol: Any) -> Any:
        join_lightning(type(self))  # `pickle` compares the type with `__class__`
        return super().__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        if join_lightning(type(self)):
            return getattr(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def join_lightning(own: type) -> bool:
    """Add the classes of the packages imported so far to the bases of a class; return whether there was one to add."""
    base: Any = next((each for each in own.__mro__ if "_lightning_class" in vars(each)), None)
    if base is None:
        return False  # a mixin, which needs no base
    bases = (*(getattr(package, base._lightning_class) for package in imported_packages()), _JoinsLightning)
    if base.__bases__ == bases:
        return False
    base.__bases__ = bases
    return True


if TYPE_CHECKING:
    from lightning.pytorch import Callback as Callback
    from lightning.pytorch import LightningDataModule as LightningDataModule
else:

    class Callback(_JoinsLightning):
        """``Callback`` of every Lightning package that has been imported."""

        _lightning_class = "Callback"

    class LightningDataModule(_JoinsLightning):
        """``LightningDataModule`` of every Lightning package that has been imported."""

        _lightning_class = "LightningDataModule"
