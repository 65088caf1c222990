"""Tags that travel with a batch through the workers of a ``DataLoader``, so that the batch finds its draw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torch_worker

from lightning_fair.dataloaders.checks import is_stream, keeps_order
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler


class Tagged(NamedTuple):
    """Indices, samples or a batch, with a tag."""

    tag: Any  # number of the draw, or its record if a worker made it
    content: Any  # the indices, the samples or the batch


@contextmanager
def tagged_batches(loader: Any, first_worker: int = 0) -> Iterator[None]:
    """Make the loader's iterators that are created in this context yield tagged batches, if tags are needed.

    A map-style data set needs tags only if batches can change their order in the workers. A stream is drawn in the
    workers, so its tags are the records themselves. Outside of the context the loader has its own settings.

    A loader takes the first batch from its worker 0. The workers of a stream that continues within an epoch exchange
    their numbers so that this one is ``first_worker``.
    """
    settings = loader.__dict__
    changed: dict[str, Any] = {}
    if is_stream(loader):
        stream = _TaggedStream(loader.dataset, loader.drop_last)
        changed = {"dataset": stream, "batch_sampler": None, "batch_size": None}
        if first_worker:
            changed["worker_init_fn"] = partial(_act_as_other_worker, first_worker, loader.worker_init_fn)
    elif not keeps_order(loader):
        place = "sampler" if loader.batch_sampler is None else "batch_sampler"
        changed = {"dataset": _TaggedDataset(loader.dataset), place: _TaggedSampler(settings[place])}
    if changed:
        changed["collate_fn"] = partial(_collate_tagged, loader.collate_fn)
    original = {name: settings[name] for name in changed}
    settings.update(changed)
    try:
        yield
    finally:
        settings.update(original)


class _TaggedSampler:
    """A batch sampler whose batches of indices are tagged with the numbers of their draws."""

    def __init__(self, sampler: FeedbackBatchSampler) -> None:
        self._sampler = sampler

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Tagged]:
        return (Tagged(draw_id, indices) for draw_id, indices in self._sampler.iter_with_ids())


class _Proxy:
    """Stands in for the user's data set; a ``worker_init_fn`` reads and sets attributes of the data set itself."""

    def __init__(self, dataset: Any, *settings: Any) -> None:
        object.__setattr__(self, "_dataset", dataset)
        object.__setattr__(self, "_settings", settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_dataset"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dataset, *self._settings)


class _TaggedDataset(_Proxy):
    """A map-style data set that takes tagged indices and returns tagged samples."""

    def __getitems__(self, batch: Tagged) -> Tagged:
        fetch = getattr(self._dataset, "__getitems__", None)
        samples = fetch(batch.content) if fetch else [self._dataset[index] for index in batch.content]
        return Tagged(batch.tag, samples)

    def __getitem__(self, batch: Tagged) -> Tagged:
        """Read a whole batch, in a loader without a batch sampler."""
        return Tagged(batch.tag, self._dataset[batch.content])

    def __len__(self) -> int:
        return len(self._dataset)


class _TaggedStream(_Proxy, IterableDataset[Tagged]):
    """A ``FairStream`` that yields whole batches of samples, tagged with the records of their draws."""

    def __iter__(self) -> Iterator[Tagged]:
        (drop_last,) = self._settings
        for draw, samples in self._dataset.batches(with_positions=True):
            if not drop_last or len(samples) == self._dataset.batch_size:
                yield Tagged(draw, samples)

    def __getattr__(self, name: str) -> Any:
        # A stateful loader would save the position of each worker with each batch, as of the draw.
        if name in ("state_dict", "load_state_dict"):
            raise AttributeError(name)
        return super().__getattr__(name)


def _act_as_other_worker(first_worker: int, users_init: Callable[[int], None] | None, worker: int) -> None:
    """Give a worker the number of another one, by which it selects its shard and its random numbers.

    It is the loader's ``worker_init_fn``, which is called before anything asks for the number. torch keeps it in one
    variable of the worker's process, which ``get_worker_info`` returns.
    """
    info: Any = get_worker_info()
    number = (worker + first_worker) % info.num_workers
    seed = info.seed - info.id + number
    torch_worker._worker_info = torch_worker.WorkerInfo(
        id=number, num_workers=info.num_workers, seed=seed, dataset=info.dataset
    )
    if users_init is not None:
        users_init(number)


def _collate_tagged(collate_fn: Callable[[Any], Any], samples: Tagged) -> Tagged:
    return Tagged(samples.tag, collate_fn(samples.content))
