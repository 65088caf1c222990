"""Measure the cost of FairStream, its memory and its recovery: `python examples/benchmarks/stream.py`.

Throughput: a stream with and without FairStream, read through torch's DataLoader without workers, in one process and
in turns; images of 28 x 28 pixels. The ratio depends on how long the stream takes to produce a sample, so there are
several streams: "augmented" warps an image (affine), "unpacked" decodes it from a compressed record (zlib), "raw bytes"
converts bytes to float, "rows of a tensor" yields `x[i], int(y[i])`, and "in memory" yields existing tensors, at no
cost. For comparison, a shuffle buffer as large as all class buffers: a list in which each new sample replaces a random
one, about the cheapest buffer that Python can have. Processor time, which other programs disturb less than wall time.

Decoded: JPEG images of 256 x 256 pixels, decoded, resized to 224 x 224 and normalized, and tensors in memory, without
workers and with two: fair and bare through the same DataLoader, in turns, by the clock and by processor time (that of
the workers included).

Memory: the samples alive at once, in the buffers and in the current batch, relative to the limit K * buffer_size.
Recovery: batches after each turn of a 99:1 stream until the trained mix stays within 2 % of the target.
Growth: memory, open files and shared memory after 1,000, 10,000 and 100,000 batches, of one process, of the way
that batches go in a fit and of two workers that stay (a fifth of the batches), and of two new workers in each epoch (a
hundredth), with losses fed back.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import resource
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import numpy as np
import torch
from benchmarks.systems import machine, markdown
from numpy.typing import NDArray
from overhead import quartiles
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from lightning_fair import FairStream, FeedbackController
from lightning_fair.dataloaders.fair_loader import make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker

ITEMS, SIDE = 2000, 28
SMALL = ((10, 64, 32), (2, 64, 32))  # classes, buffer and batch of `experiment=drift`
Sample = tuple[torch.Tensor, int]
Make = Callable[[int], torch.Tensor]


class Stream(IterableDataset[Sample]):
    """Yields samples of ``make`` with these labels, and gives each worker its shard."""

    def __init__(self, make: Make, labels: NDArray[np.int64]) -> None:
        self.make, self.labels = make, labels.tolist()

    def __iter__(self) -> Iterator[Sample]:
        make, info = self.make, get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for i, y in zip(range(first, len(self.labels), step), self.labels[first::step], strict=True):
            yield make(i % ITEMS), y


class Rows(IterableDataset[Sample]):
    """Yields the rows of a tensor, as many users' streams do."""

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.x, self.y = torch.rand(len(labels), SIDE, SIDE), torch.from_numpy(labels)

    def __iter__(self) -> Iterator[Sample]:
        x, y = self.x, self.y
        for i in range(len(y)):
            yield x[i], int(y[i])


class Shuffled(IterableDataset[Sample]):
    """Shuffles a stream with one buffer."""

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
    """Return functions from labels to a stream, by name."""
    raw = np.random.default_rng(0).integers(0, 256, (ITEMS, SIDE * SIDE), dtype=np.uint8)
    raw[:, ::2] = 0  # so that they compress, as images of digits do
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


def long_tail(size: int, num_classes: int, imbalance: float = 100.0) -> NDArray[np.int64]:
    """Return labels whose class shares fall geometrically, the first ``imbalance`` times the last."""
    shares = imbalance ** -np.linspace(0.0, 1.0, num_classes)
    return np.random.default_rng(0).choice(num_classes, size, p=shares / shares.sum())


def decoded(size: int) -> Callable[[int], torch.Tensor]:
    """Return a function that decodes one of some JPEG images, resizes it to 224 x 224 pixels and normalizes it."""
    from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg
    from torchvision.transforms import v2

    rng = torch.Generator().manual_seed(0)
    small = torch.rand(size, 3, 16, 16, generator=rng)  # smooth images, of about the size in bytes of photographs
    images = F.interpolate(small, (256, 256), mode="bicubic").clamp_(0, 1).mul_(255).to(torch.uint8)
    records = [encode_jpeg(image, quality=90) for image in images]
    transform = v2.Compose(
        [
            v2.Resize((224, 224)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    return lambda i: transform(decode_jpeg(records[i % size], ImageReadMode.RGB))


def clock() -> NDArray[np.float64]:
    """Return the time of the clock, and the processor time of this process and of ended workers, in seconds."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + ended.ru_utime + ended.ru_stime])


def time_in_turns(loaders: Sequence[DataLoader[Any]]) -> NDArray[np.float64]:
    """Return what each loader adds to ``clock``, shape ``(loaders, 2)``; their batches are read in turns."""
    spent, running = np.zeros((len(loaders), 2)), list(range(len(loaders)))
    iterators: list[Any] = [None] * len(loaders)
    while running:
        for which in list(running):
            start = clock()
            if iterators[which] is None:
                iterators[which] = iter(loaders[which])
            if next(iterators[which], None) is None:
                iterators[which] = None  # its workers end
                running.remove(which)
            spent[which] += clock() - start
    return spent


def side_by_side(
    bare: IterableDataset[Sample], num_classes: int, batch: int, buffer_size: int, workers: int, rounds: int, name: str
) -> NDArray[np.float64]:
    """Return the seconds of ``clock``, bare and fair, shape ``(rounds, 2, 2)``.

    Without workers the batches of both are read in turns, because the time of a page of memory depends on what was
    freed before. Workers would work during the other's turn, so there whole epochs are.
    """
    times = np.zeros((rounds, 2, 2))
    for turn in tqdm(range(rounds), desc=name, leave=False):
        fair = FairStream(bare, FeedbackController(num_classes), batch_size=batch, buffer_size=buffer_size)
        loaders = [DataLoader(stream, batch_size=batch, num_workers=workers) for stream in (bare, fair)]
        order = (0, 1) if turn % 2 else (1, 0)
        groups = [[which] for which in order] if workers else [list(order)]
        for group in groups:
            times[turn, group] = time_in_turns([loaders[which] for which in group])
    return times


def decoded_table(rounds: int, samples: int, num_classes: int = 10, batch: int = 64, buffer_size: int = 32) -> str:
    """Return the table of decoded samples and of tensors in memory, side by side with the bare stream."""
    in_memory = [torch.rand(SIDE, SIDE) for _ in range(ITEMS)]
    rows = []
    for name, make, size in (
        ("decoded", decoded(64), samples // 10),
        ("tensors in memory", lambda i: in_memory[i], samples),
    ):
        for workers in (0, 2):
            labels = long_tail(size, num_classes)
            times = side_by_side(
                Stream(make, labels), num_classes, batch, buffer_size, workers, rounds, f"{name}, {workers} workers"
            )
            ratio = times[:, 0] / times[:, 1]
            bare = np.median(times[:, 0], axis=0) / size * 1e6
            cells = [f"{bare[0]:.1f}", quartiles(ratio[:, 0], ".2f"), f"{bare[1]:.1f}", quartiles(ratio[:, 1], ".2f")]
            rows.append([name, str(workers), *cells])
    header = (
        "samples",
        "workers",
        "bare, µs by the clock",
        "ratio",
        "bare, µs of processor",
        "ratio of processor time",
    )
    return markdown(header, rows)


def resident(process: Path = Path("/proc/self")) -> float:
    """Return the MiB of a process that are in memory."""
    return int((process / "statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def resources(workers: Sequence[Any] = ()) -> tuple[float, int, int]:
    """Return the resident MiB, open files, and mapped pieces of shared memory, of this process and its workers."""
    processes = [Path("/proc/self"), *(Path(f"/proc/{worker.pid}") for worker in workers)]
    files = sum(len(os.listdir(process / "fd")) for process in processes)
    shared = sum((process / "maps").read_text().count("/dev/shm") for process in processes)
    return sum(map(resident, processes)), files, shared


def growth(
    batches: int, marks: Sequence[int], epoch: int, workers: int = 0, *, persistent: bool = False, in_fit: bool = False
) -> list[tuple[float, int, int]]:
    """Return what ``resources`` returns after each of some numbers of batches of a stream, with losses fed back.

    An epoch has ``epoch`` batches of 16 samples of ten classes. With ``in_fit``, batches and draws go the way that they
    go in a fit.
    """
    labels = long_tail(16 * epoch, 10, imbalance=4.0)  # so that all buffers are full early
    source = Stream(lambda i: torch.full((16,), float(i)), labels)
    stream = FairStream(source, FeedbackController(10, lambda2=0.2), batch_size=16, buffer_size=64)
    loader: Any = DataLoader(stream, batch_size=16, num_workers=workers, persistent_workers=persistent)
    loader, tracker = make_stream_fair(loader) if in_fit else loader, StreamTracker(stream)
    done, seen = 0, []
    with tqdm(total=batches, leave=False) as bar:
        while done < batches:
            tracker.start_iteration(done // epoch, within_epoch=False, keep_delivered=False)
            iterator = iter(loader)
            for x, y in iterator:
                if in_fit:
                    counts = y.bincount(minlength=10).numpy()
                    sums = y.bincount(x[:, 0], minlength=10).double().numpy()
                    tracker.report(loader.pop_pending().draw, counts, sums, counts)
                else:
                    stream.step_update(y, x[:, 0])
                done += 1
                bar.update()
                if done in marks:
                    gc.collect()
                    running = iterator._batches if in_fit else iterator
                    seen.append(resources(getattr(running, "_workers", ())))
    return seen


def growth_table(batches: int) -> str:
    """Return the table of memory, open files and shared memory."""
    rows = []
    for name, total, epoch, settings in (
        ("one process", batches, batches, {}),
        ("one process, as in a fit", batches // 5, 600, {"in_fit": True}),
        ("two workers that stay, as in a fit", batches // 5, 600, {"workers": 2, "persistent": True, "in_fit": True}),
        ("two new workers in each epoch", batches // 100, 30, {"workers": 2}),
    ):
        marks = sorted({max(total // 100, 1), max(total // 10, 1), total})
        for mark, (memory, files, shared) in zip(marks, growth(total, marks, epoch, **settings), strict=True):
            rows.append([name, f"{mark:,}", f"{memory:.1f}", str(files), str(shared)])
    return markdown(("stream", "batches", "resident, MiB", "open files", "pieces of shared memory"), rows)


def time_of(dataset: IterableDataset[Any], batch: int) -> float:
    """Return the processor time of a sample in microseconds."""
    start, samples = time.process_time(), 0
    for x, _ in DataLoader(dataset, batch_size=batch):
        samples += len(x)
    return (time.process_time() - start) / samples * 1e6


def throughput(
    bare: IterableDataset[Sample], num_classes: int, batch: int, rounds: int, name: str
) -> NDArray[np.float64]:
    """Return the times of a sample, bare, fair and shuffled, shape ``(3, rounds)``; the order changes every round."""
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
    """Creates images, and counts those that are alive."""

    def __init__(self, side: int) -> None:
        self.side, self.now, self.most = side, 0, 0
        self._watched: dict[int, weakref.ref[torch.Tensor]] = {}

    def __call__(self, i: int) -> torch.Tensor:  # noqa: ARG002
        """Return an image."""
        image = torch.ones(3, self.side, self.side)
        self.now += 1
        self.most = max(self.most, self.now)
        key = id(image)
        self._watched[key] = weakref.ref(image, lambda _: self._on_freed(key))
        return image

    def _on_freed(self, key: int) -> None:
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
) -> tuple[int, int]:
    """Return the largest number of samples alive at once, and the limit of the buffers.

    With ``loader=True`` the stream is read through torch's DataLoader, which yields the samples themselves.
    """
    labels = np.random.default_rng(0).integers(0, num_classes, 4 * num_classes * buffer_size)
    alive = Alive(side)
    source, controller = Stream(alive, labels), FeedbackController(num_classes)
    stream = FairStream(source, controller, batch_size=batch, buffer_size=buffer_size, max_reuse=max_reuse)
    for _ in DataLoader(stream, batch_size=batch, collate_fn=list) if loader else stream.batches():
        pass
    return alive.most, num_classes * buffer_size


def grown(side: int = 96, num_classes: int = 10, buffer_size: int = 256, batch: int = 16) -> float:
    """Return the MiB by which a process has grown at the end of a stream of images, which nothing counts."""
    labels = np.random.default_rng(0).integers(0, num_classes, 4 * num_classes * buffer_size)
    source = Stream(lambda _: torch.ones(3, side, side), labels)
    stream = FairStream(source, FeedbackController(num_classes), batch_size=batch, buffer_size=buffer_size)
    batches, before = stream.batches(), resident()
    for _ in islice(batches, len(labels) // batch - 1):  # after the last one the buffers are freed
        pass
    return resident() - before


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
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each stream (default: 15)")
    parser.add_argument("--samples", type=int, default=20_000, help="samples of a measurement (default: 20,000)")
    parser.add_argument(
        "--turns", type=int, default=11, help="turns of the stream that alternates between 99:1 and 1:99 (default: 11)"
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of such streams (default: 5)")
    parser.add_argument("--batches", type=int, default=100_000, help="batches of the growth (default: 100,000)")
    parser.add_argument("--only", choices=["decoded", "growth", "others"], help="measure this part alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if args.only in (None, "decoded"):
        table = decoded_table(args.rounds, args.samples)
        print(f"\n{machine()}; {args.rounds} rounds of {args.samples // 10} and {args.samples} samples\n\n{table}")
    if args.only in (None, "growth"):
        print(f"\nOf the process and its workers:\n\n{growth_table(args.batches)}")
    if args.only in (None, "others"):
        measure_others(args)


def measure_others(args: argparse.Namespace) -> None:
    """Print the throughput of small samples, the memory, and the recovery."""
    grown_mib = grown()
    most, limit = memory()
    small = [(K, buffer, batch, *memory(28, K, buffer, batch)) for K, buffer, batch in SMALL]
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
    print(f"\n{machine()}; {args.rounds} rounds of {args.samples} samples; processor time, no workers\n")
    print(
        markdown(
            ("samples", "K", "batch", "bare, µs", "added, µs", "throughput, ratio", "ratio of a shuffle buffer"), table
        )
    )
    limit_mib = limit * 3 * 96 * 96 * 4 / 2**20
    print(
        f"\nMemory, K = 10, buffer_size 256, batch 16, images of 3 x 96 x 96: at most {most} samples alive at once, "
        f"the current batch included;\nlimit {limit}; ratio {most / limit:.3f}. The process grew by "
        f"{grown_mib:.0f} MiB; the limit is {limit_mib:.0f} MiB; ratio {grown_mib / limit_mib:.2f}."
    )
    for K, buffer, batch, alive, held in small:
        print(f"K = {K}, buffer_size {buffer}, batch {batch}: {alive} alive, limit {held}, and {batch} in the batch.")
    print(
        f"\nRecovery after {len(off)} turns of a 99:1 stream, batch 64, until the trained mix stays within 2 % of the "
        f"target: median {np.median(off):g} batches, largest {max(off)}."
    )


if __name__ == "__main__":
    main()
