"""Streams in the formats that people have, each read by two workers under Lightning.

The names and lines are those that `examples/README.md` shows for each format.
"""

import json

import numpy as np
import pytest
import torch
from lightning_helpers import Weighted, fit, warnings_about
from torch.utils.data import DataLoader

from lightning_fair import FairSampling, FairStream

pytestmark = pytest.mark.slow
SIZE, BATCH, SHARDS = 512, 16, 4  # the shards of two workers have whole batches
NAMES = ["often", "rare"]


def label_of(index):
    return int(index % 5 == 4)


def shards():
    return [range(shard, SIZE, SHARDS) for shard in range(SHARDS)]


def web_dataset(folder):
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install webdataset")
    for number, shard in enumerate(shards()):
        with wds.TarWriter(str(folder / f"data-{number}.tar")) as writer:
            for i in shard:
                writer.write({"__key__": f"{i:06}", "npy": np.array(i), "cls": label_of(i)})
    data = wds.WebDataset(f"{folder}/data-{{0..3}}.tar", shardshuffle=100).shuffle(50).decode()
    return data.to_tuple("npy", "cls"), {"class_names": NAMES}


def hugging_face(folder):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    for number, shard in enumerate(shards()):
        lines = [json.dumps({"x": i, "label": label_of(i)}) for i in shard]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    features = datasets.Features({"x": datasets.Value("int64"), "label": datasets.ClassLabel(names=NAMES)})
    data = datasets.load_dataset(
        "json",
        data_files=f"{folder}/*.jsonl",
        split="train",
        streaming=True,
        features=features,
        cache_dir=str(folder / "cache"),
    )
    return data.shuffle(seed=0, buffer_size=50), {}


def lit_data(folder):
    litdata = pytest.importorskip("litdata", reason="litdata is not installed: pip install litdata")
    from litdata.streaming import Cache

    cache = Cache(str(folder), chunk_size=64)
    for i in range(SIZE):
        cache[i] = {"x": i, "label": label_of(i)}
    cache.done()
    cache.merge()
    return litdata.StreamingDataset(str(folder), shuffle=True), {"class_names": NAMES}


def mosaic_streaming(folder):
    # `tests/streaming` has its name.
    pytest.importorskip("streaming.base", reason="mosaicml-streaming is not installed: it needs an old NumPy")
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"x": "int", "label": "int"}, size_limit=2000) as writer:
        for i in range(SIZE):
            writer.write({"x": i, "label": label_of(i)})
    source = streaming.StreamingDataset(local=str(folder), batch_size=BATCH, shuffle=True)
    return source, {"class_names": NAMES}


def torchdata_nodes(folder):
    nodes = pytest.importorskip("torchdata.nodes", reason="torchdata is not installed: pip install torchdata")
    node = nodes.Mapper(nodes.IterableWrapper(range(SIZE)), lambda i: {"x": i, "label": NAMES[label_of(i)]})
    return nodes.Loader(node), {"class_names": NAMES}


class Recording(Weighted):
    """Records the items of each batch."""

    def training_step(self, batch, batch_idx):
        items = batch["x"] if isinstance(batch, dict) else batch[0]
        self.steps.append(items.reshape(-1).tolist())
        return self.weighted_loss(self.net(torch.ones(len(items), 4)).sum(1))


FORMATS = [web_dataset, hugging_face, lit_data, mosaic_streaming, torchdata_nodes]


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_one_pass_of_balanced_batches(make, tmp_path):
    """Each epoch reads every sample once, none twice, and hands out as many; batches are half and half."""
    source, settings = make(tmp_path)
    reads = torch.zeros(SIZE, dtype=torch.int64).share_memory_()

    def counted(sample):
        reads[int(sample["x"] if isinstance(sample, dict) else sample[0])] += 1
        return sample["label"] if isinstance(sample, dict) else sample[1]

    stream = FairStream(source, batch_size=BATCH, buffer_size=32, **settings)
    names = stream.classes
    stream.label_fn = counted
    module, callback = Recording(), FairSampling(class_names=names)
    with warnings_about("") as messages:
        fit(module, DataLoader(stream, batch_size=BATCH, num_workers=2), callback, max_epochs=2)
    assert names == NAMES
    assert reads.tolist() == [2] * SIZE
    assert sum(map(len, module.steps)) == 2 * SIZE
    rare = [sum(map(label_of, items)) for items in module.steps if len(items) == BATCH]
    assert len(rare) >= 2 * SIZE // BATCH - 2
    assert rare.count(BATCH // 2) > 0.9 * len(rare)
    often = [i for items in module.steps[: len(module.steps) // 2] for i in items if not label_of(i)]
    assert len(set(often)) > 0.95 * len(often)  # of the frequent class, each comes once in an epoch
    assert [message for message in messages if "Fair" in message] == []
