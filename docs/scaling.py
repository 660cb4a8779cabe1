"""docs/scaling.md from measured figures: what one machine holds, how the cost grows, and what lies beyond it.

    python docs/scaling.py > docs/scaling.md

It reads benchmarks/results/scale-cpu.json and train_speed-cpu.json (`make bench`), measures for about a minute what
they lack (reading a full-size JPEG, tables of many images, the models' gradients), and computes the rest. What is
measured, what is computed and what is assumed is said beside every table.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import pandas as pd

from dataset.readers import read_image, to_uint8
from utils import PROJECT

SIZES = {"COVID-19 Radiography Database": 21_165, "MIMIC-CXR": 377_110, "a million": 1_000_000}
SIDE = 224
FILM = (3056, 2544)  # height and width in pixels of many films of MIMIC-CXR
MODELS = ("resnet18", "vgg16", "densenet121")
RANKS = (2, 4, 8, 16)
LINKS = {"1 Gbit/s": 0.125e9, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes a second
BATCH = 32  # images per rank
GPU = 1000.0  # images a second of one GPU: assumed
EPOCHS, TRIALS, PRUNED = 10, 100, 0.5  # of a search; the share of epochs that pruning saves is assumed

TEXT = """# Scaling

Made by `python docs/scaling.py > docs/scaling.md`. *Measured*: on {machine}, no GPU. *Computed*: from these figures,
with the arithmetic said. *Assumed*: neither; put in your own.

## What one machine holds

Time per image does not grow with the number of images: from 1,000 to 64,000 images the log-log slopes are {slopes}
(`python benchmarks/scale.py`). So the figures per image at 64,000 are multiplied. A full-size JPEG (3056×2544,
{film_mb} MB, simulated) takes {film_ms} ms of one core; the row is for both cores. An epoch is images ÷ the measured
images per second (`python benchmarks/train_speed.py`).

{one}

- Pixels are read from the cache a batch at a time (`preadv`), not held: the training process's memory does not grow
  with them. What grows is the table of records. The kernel's page cache keeps as many pixels as fit; beyond that the
  disk must give {disk} MB/s, which is 67 images/s of this machine at 224×224: any disk does. A GPU of {gpu} images/s
  asks 50 MB/s.
- On a GPU the pictures of a split are moved once where they fit `data.device_memory` (4 GiB: 85,000 pictures); a
  larger split is streamed.
- The cache is built once. It is keyed by content: new files cost their own decoding alone.

## Many processes: `torchrun`

`torchrun --nproc-per-node N [--nnodes M --rdzv-backend c10d --rdzv-endpoint HOST:PORT] train.py …` The global batch
is `train.batch`, split over the ranks; the learning rate therefore stays. Each step sends every gradient once around:
2 (N - 1) / N × bytes ÷ bandwidth per rank (ring all-reduce). The table is the share of the time that is left for
training with {batch} images per rank and step, when nothing of the sending hides behind the backward pass: a lower
bound, *computed*; DistributedDataParallel does hide most of it. {gpu} images/s of a GPU are *assumed*.

{ranks}

Read it so: on CPUs 10 Gbit/s are enough for ResNet18 and DenseNet121; for GPUs the network is the machine. VGG16
sends half a gigabyte a step: make steps fewer and larger (`--batch`, with `train.accumulate` where
memory is short), or choose another model.

**Shared storage.** Every rank reads the pixel cache by itself. Put the originals and `data.cache_dir` on storage that
all nodes see; rank 0 builds the cache while the others wait. Or build it once, copy the folder to a local disk of
every node (a file, read sequentially), and name it in `data.cache_dir`: then no picture crosses the network in
training. Only rank 0 writes into `runs/`.

## MIMIC-CXR and a million

Measured up to 64,000 images; beyond that *computed*, not run.

- **377,110 images** (MIMIC-CXR) fit one machine: the cache is 18 GiB, the table of records well under a GiB. Time
  goes into decoding the originals once, and into training. Sixteen cores decode in an eighth of the time here.
- **A million** fits, too: 47 GiB of cache on a disk. The table of records and predictions are pandas tables in
  memory; a few million images are their limit, not the pixels. After that: shard by site and train on the shards'
  CSVs.
- Patients, not images, are what an interval counts: MIMIC-CXR has 65,379. More images per patient narrow little.

## Search on a cluster

`tune.py` keeps its trials in a database (`--storage postgresql://…`); any number of processes on any number of
machines takes trials from it (docs/search.md). Cost of {trials} trials of {epochs} epochs with ResNet18, {pruned} of
the epochs saved by pruning (*assumed*), *computed*:

{search}

With a million images a search on all of them is no plan for one machine: search on a part (`data.subset=true`, or a
CSV of some patients), and train the winner on the whole. Each worker is a process with one machine or one GPU; a
trial under `torchrun` is not supported, since many trials at once use the machines better than one trial on many.
"""


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def film_seconds(repeats: int = 10) -> tuple[float, float]:
    """Seconds of one core per full-size JPEG (decoding and resizing), and its bytes: a smooth film with grain."""
    rng = np.random.default_rng(0)
    film = cv2.resize(rng.uniform(0, 255, (32, 32)).astype(np.float32), FILM[::-1], interpolation=cv2.INTER_CUBIC)
    film = np.clip(film + rng.normal(0, 6, FILM), 0, 255).astype(np.uint8)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.jpg"
        cv2.imwrite(str(path), film, [cv2.IMWRITE_JPEG_QUALITY, 95])
        began = time.perf_counter()
        for _ in range(repeats):
            cv2.resize(to_uint8(read_image(path)), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        return (time.perf_counter() - began) / repeats, float(path.stat().st_size)


def table_bytes(images: int = 100_000) -> tuple[float, float]:
    """Bytes per image of split.csv on disk and of the same table in memory: simulated names and digests."""
    digests = [f"{i:064x}" for i in range(images)]
    records = pd.DataFrame(
        {
            "path": [f"/data/mimic/files/p10/p1{i:07d}/s{i:08d}/{d[-40:]}.jpg" for i, d in enumerate(digests)],
            "sha256": digests,
            "label": np.array(["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"])[np.arange(images) % 4],
            "group": [f"p1{i // 3:07d}" for i in range(images)],
            "source": "mimic",
            "lung_mask": "",
            "lesion_mask": "",
            "split": "train",
        }
    )
    return len(records.to_csv(index=False)) / images, records.memory_usage(deep=True).sum() / images


def gradient_bytes() -> dict[str, int]:
    """Bytes of all gradients in float32: what every step sends."""
    from pretrained_models import build_model

    return {name: 4 * sum(p.numel() for p in build_model(name, 4)[0].parameters()) for name in MODELS}


def per_image(scale: dict) -> dict[str, float]:
    """Seconds per image of the largest measured size."""
    largest = max(scale["measured"], key=lambda key: int(key) if key.isdigit() else -1)
    return {name: value / int(largest) for name, value in scale["measured"][largest]["seconds"].items()}


def speeds(training: dict) -> dict[str, float]:
    """Training images a second, the median over the rounds."""
    return {name: float(np.median(training["measured"][name]["images_per_second"]["ours"])) for name in MODELS}


def one_machine(costs: dict[str, float], speed: dict[str, float], film: float, film_size: float) -> list[str]:
    """What every size costs on this machine."""
    on_disk, in_memory = table_bytes()
    heads = ["", *SIZES]
    rows: dict[str, list[str]] = {
        "images": [f"{n:,}" for n in SIZES.values()],
        f"pixel cache at {SIDE}×{SIDE}, GiB": [f"{n * SIDE**2 / 2**30:.1f}" for n in SIZES.values()],
        "building it from 299×299 PNGs": [duration(n * costs["cache"]) for n in SIZES.values()],
        "building it from full-size JPEGs": [duration(n * film / 2) for n in SIZES.values()],
        "those JPEGs, TB": [f"{n * film_size / 1e12:.2f}" for n in SIZES.values()],
        "hashing 299×299 PNGs": [duration(n * costs["hash"]) for n in SIZES.values()],
        "the split by patient": [duration(n * costs["split"]) for n in SIZES.values()],
        "reading an epoch from the cache": [duration(n * costs["epoch"]) for n in SIZES.values()],
        "split.csv on disk, MiB": [f"{n * on_disk / 2**20:,.0f}" for n in SIZES.values()],
        "the same table in memory, MiB": [f"{n * in_memory / 2**20:,.0f}" for n in SIZES.values()],
    }
    for model in MODELS:
        rows[f"an epoch of {model}"] = [duration(n / speed[model]) for n in SIZES.values()]
    return table(heads, [[name, *cells] for name, cells in rows.items()])


def many_ranks(gradients: dict[str, int], speed: dict[str, float]) -> list[str]:
    """The share of N machines' time that is left for training when gradients travel by ring all-reduce, unhidden."""
    rows = []
    for model in MODELS:
        for who, rate in (("this machine", speed[model]), (f"a GPU of {GPU:.0f} images/s", GPU)):
            for link, bandwidth in LINKS.items():
                step = BATCH / rate
                share = [step / (step + 2 * (n - 1) / n * gradients[model] / bandwidth) for n in RANKS]
                rows.append([model, who, link, f"{gradients[model] / 1e6:.0f}", *(f"{s:.0%}" for s in share)])
    return table(["model", "each rank", "network", "gradients, MB", *(f"{n} ranks" for n in RANKS)], rows)


def search(speed: dict[str, float]) -> list[str]:
    """How long a search takes with ResNet18."""
    rows = []
    for name, n in SIZES.items():
        whole = TRIALS * EPOCHS * n * (1 - PRUNED)
        rows.append(
            [
                name,
                *(duration(whole / speed["resnet18"] / workers) for workers in (1, 8)),
                *(duration(whole / GPU / workers) for workers in (1, 8)),
            ]
        )
    return table(["", "1 such machine", "8 of them", "1 GPU (assumed)", "8 GPUs (assumed)"], rows)


def main() -> None:
    results = PROJECT / "benchmarks" / "results"
    scale, training = (json.loads((results / f"{name}-cpu.json").read_text()) for name in ("scale", "train_speed"))
    costs, speed = per_image(scale), speeds(training)
    film, film_size = film_seconds()
    gradients = gradient_bytes()
    machine = scale["machine"]
    page = TEXT.format(
        machine=f"{machine['cores']} cores ({machine['device']}), {machine['memory_gib']} GiB",
        one="\n".join(one_machine(costs, speed, film, film_size)),
        disk=f"{speed['resnet18'] * SIDE**2 / 1e6:.0f}",
        film_ms=f"{film * 1000:.0f}",
        film_mb=f"{film_size / 1e6:.1f}",
        slopes=", ".join(f"{name} {value:.2f}" for name, value in scale["measured"]["slopes"].items()),
        ranks="\n".join(many_ranks(gradients, speed)),
        batch=BATCH,
        gpu=f"{GPU:.0f}",
        trials=TRIALS,
        epochs=EPOCHS,
        pruned=f"{PRUNED:.0%}",
        search="\n".join(search(speed)),
    )
    sys.stdout.write(page)


if __name__ == "__main__":
    main()
