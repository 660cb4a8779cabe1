"""Does the cost per image stay flat as a data set grows?

    python benchmarks/scale.py [--sizes 1000,4000,16000,64000]

For each size, in a separate process: hash the files, decode and resize them into an empty cache, group and split, set
up an epoch (order and weighted oversampling, first batch), and read the images of an epoch in its order, batch by
batch, without a model. The files are images of the phantom, made distinct by a number in their metadata. They are
written to a temporary folder under `--folder` (64,000 take 3 GB, their cache another 3 GB) and deleted at the end.

`memory` is the process's peak above its memory after the imports. It may grow with the records (a path, a hash, a
patient), not with the pixels. Each size is timed once; split and epoch set-up are the best of five.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

from common import ROOT, report

STEPS = ("hash", "cache", "split", "set-up", "epoch")
FILMS, SIZE, BATCH = 256, 224, 32


def write_files(folder: Path, count: int) -> list[str]:
    """Write `count` different PNGs of 299×299 to `folder`/CLASS, named after their patients, and return their paths."""
    from config import DataConfig
    from dataset.loading import load_dataset
    from dataset.phantom.constants import CLASSES

    records = load_dataset(DataConfig(), SIZE).records
    films = [Path(path).read_bytes() for path in records["path"].iloc[:: len(records) // FILMS]]
    paths = []
    for label in CLASSES:
        (folder / label).mkdir()
    for i in range(count):
        film, label = films[i % len(films)], CLASSES[(i * 7919 % 100 > 20) + (i % 3 == 0) * 2]
        end = film.rindex(b"IEND") - 4
        text = b"tEXtComment\0" + b"%d" % i
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        path = folder / label / f"P{i // 2:06d}-{i % 2}.png"
        path.write_bytes(film[:end] + chunk + film[end:])
        paths.append(str(path))
    return paths


def measure(data: str, cache: str, pipe) -> None:
    """Run all steps once in this process; send the seconds by step and the memory in MiB."""
    import numpy as np
    import torch

    from config import DataConfig
    from dataset.cache import PixelStore, hash_files
    from dataset.image_set import ImageSet, Schedule
    from dataset.layouts import find_records, name_groups
    from dataset.sampling import epoch_order
    from dataset.split import split_records
    from dataset.transforms import Normalisation
    from utils import pick_device

    device = pick_device("cpu")
    torch.zeros(1)
    before, seconds = _peak(), {}

    def timed(step: str, work, repeats: int = 1):
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - began)
        seconds[step] = min(times)
        return result

    records = find_records(Path(data))
    records["group"] = name_groups(records, r"^(P\d+)-\d$")
    records["sha256"] = timed("hash", lambda: hash_files(list(records["path"]), Path(cache)))
    store = PixelStore(Path(cache), SIZE, "squash")
    paths, hashes = list(records["path"]), list(records["sha256"])
    unreadable = timed("cache", lambda: store.build(paths, hashes))
    assert not unreadable
    split = timed("split", lambda: split_records(records, DataConfig().split, 0), 5)
    training = records[split == "train"].reset_index(drop=True)
    classes = sorted(records["label"].unique())
    image_set = ImageSet(
        records=training, classes=classes, stores={"image": (store, store.rows(training["sha256"]))}
    )

    def batches(order: np.ndarray):
        return image_set.batches(device, BATCH, Normalisation((0.5,), (0.25,)), Schedule(order))

    def set_up() -> np.ndarray:
        order = epoch_order(image_set.labels, "weighted", 0, 1)
        next(batches(order))
        return order

    order = timed("set-up", set_up, 5)
    timed("epoch", lambda: [None for _ in batches(order)])
    pipe.send((seconds, _peak() - before, len(records)))


def _peak() -> float:
    """Return the peak memory of this process plus that of its largest child process, in MiB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / (2**20 if sys.platform == "darwin" else 2**10)


def slope(sizes: list[int], values: list[float]) -> float:
    """Return the least-squares slope of log(value) over log(size); 1 means a constant cost per image."""
    x, y = [math.log(s) for s in sizes], [math.log(max(v, 1e-9)) for v in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,4000,16000,64000")
    parser.add_argument("--folder", default=str(ROOT / ".cache"), help="folder for the temporary files (7 GB)")
    arguments = parser.parse_args()
    sizes, rows, measured = [int(s) for s in arguments.sizes.split(",")], [], {}
    Path(arguments.folder).mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    for size in tqdm(sizes, desc="sizes", leave=False):
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="scale-") as folder:
            data, cache = Path(folder) / "data", Path(folder) / "cache"
            data.mkdir()
            write_files(data, size)
            receiver, sender = context.Pipe()
            process = context.Process(target=measure, args=(str(data), str(cache), sender))
            process.start()
            sender.close()
            try:
                seconds, memory, count = receiver.recv()
            except EOFError:
                raise SystemExit(f"scale.py: {size} images: the process ended (see its message above)") from None
            process.join()
        assert count == size
        measured[str(size)] = {"seconds": seconds, "memory_mib": memory}
        rows.append(
            {"size": f"{size:,}"}
            | {step: f"{seconds[step] / size * 1e6:.0f}" for step in STEPS}
            | {"memory": f"{memory:.0f}", "pixels": f"{size * SIZE**2 / 2**20:.0f}"}
        )
    slopes = {step: slope(sizes, [measured[str(s)]["seconds"][step] for s in sizes]) for step in STEPS}
    slopes["memory"] = slope(sizes, [measured[str(s)]["memory_mib"] for s in sizes])
    rows.append({"size": "log-log slope"} | {name: f"{value:.2f}" for name, value in slopes.items()})
    columns = {"size": "images"} | {step: f"{step}, µs each" for step in STEPS}
    report("scale", columns | {"memory": "memory, MiB", "pixels": "pixels, MiB"}, rows, measured | {"slopes": slopes})


if __name__ == "__main__":
    main()
