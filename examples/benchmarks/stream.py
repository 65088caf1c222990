"""Measure what FairStream costs a stream, and what it keeps of its bounds: `python examples/benchmarks/stream.py`.

Throughput: the bare stream and the same under FairStream, both through torch's DataLoader without workers, in one
process and in turns, images of 28 by 28 pixels. A stream has to make its samples, and how long that takes decides the
ratio, so there are several: one that augments an image (an affine warp), one that decodes it from a compressed record
(zlib), one that only converts raw bytes to float, one that hands out the rows of a tensor, `x[i], int(y[i])`, and one
that hands out tensors as they lie in memory, which costs a stream nothing at all. For comparison the least that any
buffer in Python costs: torch's way to shuffle a stream, one list as large as all buffers, whose samples change places
with those that come. Processor time, which other programs disturb less than the clock.

Memory: the samples alive at once, in the buffers and in hand, against the K * buffer of the stated limit. Recovery:
batches after each turn of a 99:1 stream until the trained mix stays within 2 % of the target.
"""

from __future__ import annotations

import argparse
import random
import resource
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from overhead import quartiles
from systems import machine, markdown
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from lightning_fair import FairStream, FeedbackController

ITEMS, SIDE = 2000, 28
SMALL = ((10, 64, 32), (2, 64, 32))  # classes, buffer and batch of `experiment=drift`
Sample = tuple[torch.Tensor, int]
Make = Callable[[int], torch.Tensor]


class Stream(IterableDataset[Sample]):
    """``size`` samples of ``make`` in a long tail, or at 99:1 and 1:99 in turns."""

    def __init__(self, make: Make, labels: NDArray[np.int64]) -> None:
        self.make, self.labels = make, labels.tolist()

    def __iter__(self) -> Iterator[Sample]:
        make = self.make
        for i, y in enumerate(self.labels):
            yield make(i % ITEMS), y


class Rows(IterableDataset[Sample]):
    """The commonest stream of all."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.x, self.y = torch.rand(len(labels), SIDE, SIDE), torch.from_numpy(labels)

    def __iter__(self) -> Iterator[Sample]:
        x, y = self.x, self.y
        for i in range(len(y)):
            yield x[i], int(y[i])


class Shuffled(IterableDataset[Sample]):
    """A stream in another order, out of one buffer."""

    def __init__(self, source: IterableDataset[Sample], buffer: int) -> None:
        self.source, self.buffer = source, buffer

    def __iter__(self) -> Iterator[Sample]:
        held: list[Sample] = []
        for sample in self.source:
            if len(held) < self.buffer:
                held.append(sample)
                continue
            place = int(random.random() * self.buffer)
            out, held[place] = held[place], sample
            yield out
        yield from held


def sources() -> dict[str, Callable[[NDArray[np.int64]], IterableDataset[Sample]]]:
    """Return streams, each made from its labels."""
    raw = np.random.default_rng(0).integers(0, 256, (ITEMS, SIDE * SIDE), dtype=np.uint8)
    raw[:, ::2] = 0  # as drawn digits, they compress
    records = [bytearray(row.tobytes()) for row in raw]
    packed = [zlib.compress(row.tobytes()) for row in raw]
    in_memory = list(torch.from_numpy(raw).float().div(255).view(-1, SIDE, SIDE).clone().unbind())
    in_memory = [image.clone() for image in in_memory]

    def from_bytes(record: bytearray) -> torch.Tensor:
        return torch.frombuffer(record, dtype=torch.uint8).view(SIDE, SIDE).float().div_(255)

    def warped(i: int) -> torch.Tensor:
        theta = torch.eye(2, 3).add_(torch.randn(2, 3), alpha=0.1)[None]
        grid = F.affine_grid(theta, [1, 1, SIDE, SIDE], align_corners=False)
        return F.grid_sample(from_bytes(records[i])[None, None], grid, align_corners=False)[0, 0].clone()

    return {
        "augmented": partial(Stream, warped),
        "unpacked": partial(Stream, lambda i: from_bytes(bytearray(zlib.decompress(packed[i])))),
        "raw bytes": partial(Stream, lambda i: from_bytes(records[i])),
        "rows of a tensor": Rows,
        "in memory": partial(Stream, lambda i: in_memory[i]),
    }


def long_tail(size: int, num_classes: int, trained_mix: float = 100.0) -> NDArray[np.int64]:
    """Return labels in a long tail."""
    shares = trained_mix ** -np.linspace(0.0, 1.0, num_classes)
    return np.random.default_rng(0).choice(num_classes, size, p=shares / shares.sum())


def time_of(dataset: IterableDataset[Any], batch: int) -> float:
    """Return the microseconds of processor time that a sample takes."""
    start, samples = time.process_time(), 0
    for x, _ in DataLoader(dataset, batch_size=batch):
        samples += len(x)
    return (time.process_time() - start) / samples * 1e6


def throughput(
    bare: IterableDataset[Sample], num_classes: int, batch: int, rounds: int, name: str
) -> NDArray[np.float64]:
    """Return the times of a sample, shape ``(3, rounds)``: bare, fair, shuffled; who is first changes every round."""
    runs = (
        partial(time_of, bare, batch),
        lambda: time_of(FairStream(bare, FeedbackController(num_classes), batch_size=batch), batch),
        lambda: time_of(Shuffled(bare, 256 * num_classes), batch),
    )
    times = np.zeros((3, rounds))
    for turn in tqdm(range(rounds), desc=name, leave=False):
        for which in np.roll(range(3), turn):
            times[which, turn] = runs[which]()
    return times


class Alive:
    """Makes images, and counts those that are alive."""

    def __init__(self, side: int) -> None:
        self.side, self.now, self.most = side, 0, 0
        self._watched: dict[int, weakref.ref[torch.Tensor]] = {}

    def __call__(self, i: int) -> torch.Tensor:  # noqa: ARG002
        """Return one."""
        image = torch.ones(3, self.side, self.side)
        self.now += 1
        self.most = max(self.most, self.now)
        key = id(image)
        self._watched[key] = weakref.ref(image, lambda _: self._gone(key))
        return image

    def _gone(self, key: int) -> None:
        self.now -= 1
        del self._watched[key]


def memory(
    side: int = 96,
    num_classes: int = 10,
    buffer_size: int = 256,
    batch: int = 16,
    *,
    max_reuse: int = 64,
    loader: bool = False,
) -> tuple[int, int, float]:
    """Return the most samples alive at once, the stated limit of the buffers, and the bytes the process grew by.

    With ``loader`` it is read through torch's DataLoader, which hands out the samples themselves.
    """
    labels = np.random.default_rng(0).integers(0, num_classes, 4 * num_classes * buffer_size)
    alive = Alive(side)
    source, controller = Stream(alive, labels), FeedbackController(num_classes)
    stream = FairStream(source, controller, batch_size=batch, buffer_size=buffer_size, max_reuse=max_reuse)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in DataLoader(stream, batch_size=batch, collate_fn=list) if loader else stream.batches():
        pass
    grown = 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return alive.most, num_classes * buffer_size, grown


def recovery(turns: int, batch: int, seed: int, turn_size: int = 12_800) -> list[int]:
    """Return, for each turn of a 99:1 stream after the first, the batches until the trained mix stays within 2 %."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([(rng.random(turn_size) < 0.99) ^ (turn % 2 == 0) for turn in range(turns)]).astype(int)
    controller = FeedbackController(2)
    stream = FairStream(list(enumerate(labels.tolist())), controller, batch_size=batch, seed=seed)
    arrived, late, off = 0, [0] * turns, [0] * turns
    for draw, _ in stream.batches(in_flight=True):
        controller.report(draw.counts, draw=draw)
        arrived += int(draw.arrived.sum())
        turn = min(max(arrived - 1, 0) // turn_size, turns - 1)
        late[turn] += 1
        if np.abs(controller.trained_mix - 0.5).max() > 0.02:
            off[turn] = late[turn]
    return off[1:]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each side (default: 15)")
    parser.add_argument("--samples", type=int, default=20_000, help="samples of a turn (default: 20,000)")
    parser.add_argument("--turns", type=int, default=11, help="of the stream that turns over (default: 11)")
    parser.add_argument("--seeds", type=int, default=5, help="streams that turn over (default: 5)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    most, limit, grown = memory()
    small = [(K, buffer, batch, *memory(28, K, buffer, batch)[:2]) for K, buffer, batch in SMALL]
    table = []
    for name, make in sources().items():
        for K, batch in ((10, 128), (2, 128), (10, 64)):
            stream = make(long_tail(args.samples, K))
            bare, fair, shuffled = throughput(stream, K, batch, args.rounds, f"{name}, K = {K}")
            table.append(
                [
                    name,
                    str(K),
                    str(batch),
                    f"{np.median(bare):.1f}",
                    quartiles(fair - bare, ".1f"),
                    quartiles(bare / fair, ".2f"),
                    quartiles(bare / shuffled, ".2f"),
                ]
            )
    off = [batches for seed in range(args.seeds) for batches in recovery(args.turns, 64, seed)]
    print(f"\n{machine()}; {args.rounds} rounds in turns of {args.samples} samples; processor time, no worker\n")
    print(
        markdown(
            ("samples are", "K", "batch", "bare, µs", "added, µs", "throughput, ratio", "of a shuffle buffer"), table
        )
    )
    size = 3 * 96 * 96 * 4
    print(
        f"\nMemory, K = 10, buffer 256, batch 16, images of 3 x 96 x 96: at most {most} samples alive at once, those in"
    )
    print(
        f"hand with them; stated limit {limit}; ratio {most / limit:.3f}. The process grew by {grown / 2**20:.0f} MiB,"
    )
    print(f"the limit takes {limit * size / 2**20:.0f} MiB: the allocator's share is in it.")
    for K, buffer, batch, alive, held in small:
        print(f"K = {K}, buffer {buffer}, batch {batch}: {alive} alive, limit {held}, and {batch} in hand.")
    print(f"\nRecovery after {len(off)} turns of a 99:1 stream, batch 64, within 2 % of the target for good: median")
    print(f"{np.median(off):g}, largest {max(off)} batches.")


if __name__ == "__main__":
    main()
