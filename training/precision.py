"""Which precision trains fastest here: measured, remembered, and said."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from utils import autocast, device_name, log, write_json

CANDIDATES = ("fp32", "bf16")
MAX_IMAGES, MAX_SECONDS = 8, 5.0
REPEATS = 6  # the best of several: a neighbour on the machine slows single steps


def choose_precision(
    wanted: str,
    model: nn.Module,
    name: str,
    size: int,
    channels: int,
    device: torch.device,
    cache_dir: Path,
    batch: int = 32,
) -> str:
    """`wanted`, or for `auto` the faster of fp32 and bf16 autocast for training steps of this model on this device.

    Measured on at most `MAX_IMAGES` images within about `MAX_SECONDS`, and remembered in `precision.json` under
    `cache_dir` by model, input size, batch, device and torch version.
    """
    if wanted != "auto":
        return wanted
    memory = cache_dir / "precision.json"
    key = f"{name}, {size}px, batch {batch}, {device_name(device)}, torch {torch.__version__}"
    remembered = _read(memory)
    if key not in remembered:
        log.info("measuring which precision trains faster here ...")
        seconds = measure_precisions(model, size, channels, device, batch)
        remembered = _read(memory) | {key: seconds}
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(memory, remembered)
    seconds = remembered[key]
    chosen = min(CANDIDATES, key=lambda p: seconds[p])
    log.info(
        f"precision {chosen}: a training step took "
        + ", ".join(f"{p} {seconds[p] * 1000:.0f} ms" for p in CANDIDATES)
        + f" per image ({key})"
    )
    return chosen


def _read(memory: Path) -> dict[str, dict[str, float]]:
    try:
        content = json.loads(memory.read_text())
        return {k: v for k, v in content.items() if all(isinstance(v[p], float) for p in CANDIDATES)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # absent, or not what we wrote: it is measured again


def measure_precisions(
    model: nn.Module, size: int, channels: int, device: torch.device, batch: int
) -> dict[str, float]:
    """Seconds per image of a training step of `batch` images in each of `CANDIDATES`, on a copy of `model`.

    Steps of two and of up to `MAX_IMAGES` images are timed, the best of interleaved repeats, and the line through both
    is followed to `batch`: casting the weights costs the same however many images there are (VGG's classifier), and a
    small step alone would blame the precision for it.
    """
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    start = time.perf_counter()

    def step(precision: str, images: int) -> float:
        inputs = torch.linspace(-2, 2, images * channels * size * size, device=device)
        inputs = inputs.view(images, channels, size, size).to(memory_format=torch.channels_last)
        began = time.perf_counter()
        with autocast(device, precision):
            loss = F.cross_entropy(model(inputs).float(), torch.zeros(images, dtype=torch.long, device=device))
        loss.backward()
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    # The first steps make the kernels; they also tell how many images fit into the time. Two images at the least: batch
    # normalisation of a 1×1 map needs them.
    few = 2
    slowest = max(step(precision, few) for precision in CANDIDATES)
    left = MAX_SECONDS - (time.perf_counter() - start)
    many = int(min(MAX_IMAGES, max(2 * few, left / (2 * slowest / few))))
    best = {(precision, images): float("inf") for precision in CANDIDATES for images in (few, many)}
    for _ in range(REPEATS):
        for precision, images in best:
            best[precision, images] = min(best[precision, images], step(precision, images))
        if time.perf_counter() - start > MAX_SECONDS * 0.7:
            break
    seconds = {}
    for precision in CANDIDATES:
        one_more = max(best[precision, many] - best[precision, few], 0) / (many - few)
        seconds[precision] = (best[precision, many] + one_more * max(0, batch - many)) / max(batch, many)
    return seconds
