"""Notices that several workers of a stream, or several ranks, read the same samples."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lightning_fair.common.arrays import Floats

_MAX_WORKERS, _NUM_COMPARED = 64, 64  # rows of the table, and samples that are compared
# Fewer samples tell nothing, and neither do those of a worker that itself repeats some: there are only a few kinds of
# them then, and workers with shards of their own have the same kinds.
_MIN_COMPARED, _MIN_DISTINCT, _MIN_SHARED = 16, 0.9, 0.5
_HEADER = 2  # columns before the checksums: the iteration, and how many checksums follow
_UNKNOWN, _SHARED, _WARNED = 0.0, 1.0, 2.0

_REMEDY = "Let the source give each {} samples of its own, for example in its __iter__: {}."
_OF_WORKERS = (
    "info = torch.utils.data.get_worker_info(); samples = itertools.islice(samples, info.id, None, info.num_workers) "
    "if info else samples; a data pipe: .sharding_filter()"
)
_OF_RANKS = (
    "samples = itertools.islice(samples, rank, None, world_size), with the rank of its process; a Hugging Face stream: "
    "datasets.distributed.split_dataset_by_node(stream, rank, world_size)"
)


class OnePassCheck:
    """Compares the first samples that a worker reads with those of the other workers of its iteration.

    Each worker writes the checksums of its first 64 samples into a row of a table in shared memory. If more than half
    of them stand in the row of another worker too, the source gives both the same samples. Nothing is concluded from
    fewer than 16 samples, or if a worker's own samples repeat. Samples that each worker changes at random, such as
    augmented images, or reads in an order of its own, are not recognized.

    Args:
        table: What ``new_table`` returned, the same for all workers.
        worker: Number of this worker.
        iteration: Number of the iteration, the same for all of its workers.
    """

    def __init__(self, table: Floats, worker: int, iteration: float) -> None:
        self._verdict, self._rows = table[0], table[1:]
        self._worker, self._iteration = worker, iteration
        self._checksums: list[int] = []
        self.is_done = worker >= len(self._rows) or self._verdict[0] == _WARNED
        if not self.is_done:
            self._rows[worker, :_HEADER] = 0.0  # the row is of an earlier iteration

    @staticmethod
    def new_table() -> torch.Tensor:
        """Return a table in shared memory: the verdict, and a row for each worker."""
        table = torch.zeros(1 + _MAX_WORKERS, _HEADER + _NUM_COMPARED, dtype=torch.float64)
        return table.share_memory_()  # type: ignore[no-untyped-call, no-any-return]

    def add(self, samples: Sequence[Any]) -> None:
        """Add samples that this worker has read; none: its source has ended."""
        row, own = self._rows[self._worker], self._checksums
        try:
            new = [checksum(sample) for sample in samples[: _NUM_COMPARED - len(own)]]
        except Exception:  # of samples whose values cannot be read as bytes
            self.is_done = True
            return
        own += new
        row[_HEADER : _HEADER + len(own)] = own
        row[1] = len(own)
        if new and len(own) < _NUM_COMPARED:
            return
        self.is_done, row[0] = True, self._iteration
        for other in np.flatnonzero(self._rows[:, 0] == self._iteration).tolist():
            if other != self._worker and (shared := num_shared(_checksums(self._rows[other]), own)):
                if self._verdict[0] == _UNKNOWN:
                    self._verdict[1:5] = self._worker, other, shared, len(own)
                    self._verdict[0] = _SHARED
                return


def take_verdict(table: torch.Tensor) -> str | None:
    """Return the warning that two workers read the same samples, the first time that it is asked for; else None."""
    verdict = table.numpy()[0]
    if verdict[0] != _SHARED:
        return None
    verdict[0] = _WARNED
    worker, other, shared, total = verdict[1:5].astype(int).tolist()
    return (
        f"Workers {min(worker, other)} and {max(worker, other)} of a FairStream read the same samples: {shared} of the "
        f"first {total} are in both, so each sample comes once from every such worker. "
        f"{_REMEDY.format('worker', _OF_WORKERS)}"
    )


def compare_ranks(ranks: Mapping[int, list[int]]) -> str | None:
    """Return a warning if a rank reads the samples of rank 0, given what ``own_checksums`` returned on each."""
    for rank in sorted(ranks)[1:]:
        if shared := num_shared(ranks[0], ranks[rank]):
            return (
                f"Ranks 0 and {rank} read the same samples: {shared} of the first {len(ranks[rank])} of a FairStream "
                f"are on both, so each sample comes once from every such rank. "
                f"{_REMEDY.format('rank', _OF_RANKS)}"
            )
    return None


def own_checksums(table: torch.Tensor) -> list[int]:
    """Return the checksums of the first samples that worker 0 has read, or the process without workers."""
    return _checksums(table.numpy()[1])


def _checksums(row: Floats) -> list[int]:
    number = int(row[1])
    return row[_HEADER : _HEADER + number].astype(int).tolist()  # type: ignore[no-any-return]


def num_shared(one: list[int], two: list[int]) -> int:
    """Return how many samples two readers share if they read the same data; 0 if they do not, or if it is not certain.

    Example:
        >>> num_shared(list(range(64)), list(range(10, 74))), num_shared(list(range(64)), list(range(64, 128)))
        (54, 0)
        >>> num_shared([0, 1] * 32, [0, 1] * 32)
        0
    """
    sets, sizes = (set(one), set(two)), (len(one), len(two))
    has_enough = min(sizes) >= _MIN_COMPARED
    are_distinct = all(len(kinds) >= _MIN_DISTINCT * size for kinds, size in zip(sets, sizes, strict=True))
    shared = len(sets[0] & sets[1])
    return shared if has_enough and are_distinct and shared > _MIN_SHARED * min(map(len, sets)) else 0


def checksum(sample: Any) -> int:
    """Return the CRC-32 of the values in a sample: tensors, arrays, texts, numbers, in any structure of containers.

    Example:
        >>> checksum((torch.zeros(3), 1)) == checksum((torch.zeros(6)[:3], 1)), checksum(1) == checksum(2)
        (True, False)
    """
    return _update(sample, 0)


def _update(value: Any, crc: int) -> int:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, (tuple, list)):
        for part in value:
            crc = _update(part, crc)
        return crc
    # Arrays, numbers of NumPy and images of PIL have `tobytes`.
    value = value.tobytes() if hasattr(value, "tobytes") else value
    return zlib.crc32(value if isinstance(value, bytes) else repr(value).encode(), crc)
