"""Small data sets on disk, for the tests of the examples."""

import gzip

import numpy as np


def write_idx(path, array, packed):
    header = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    data = header + array.astype(np.uint8).tobytes()
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def fake_mnist(root, packed):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, each in (("train", 30), ("t10k", 4)):
        labels = rng.permutation(np.repeat(np.arange(10), each))
        images = np.broadcast_to(labels[:, None, None] * 25, (labels.size, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", images, packed)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels, packed)
    return raw
