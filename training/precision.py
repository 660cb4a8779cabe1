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
    wanted: str, model: nn.Module, name: str, size: int, channels: int, device: torch.device, cache_dir: Path
) -> str:
    """`wanted`, or for `auto` the faster of fp32 and bf16 autocast for training steps of this model on this device.

    Measured on at most `MAX_IMAGES` images within about `MAX_SECONDS`, and remembered in `precision.json` under
    `cache_dir` by model, input size, device and torch version.
    """
    if wanted != "auto":
        return wanted
    memory = cache_dir / "precision.json"
    key = f"{name}, {size}px, {device_name(device)}, torch {torch.__version__}"
    remembered = _read(memory)
    if key not in remembered:
        log.info("measuring which precision trains faster here ...")
        seconds = measure_precisions(model, size, channels, device)
        remembered = _read(memory) | {key: seconds}
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


def measure_precisions(model: nn.Module, size: int, channels: int, device: torch.device) -> dict[str, float]:
    """Seconds per image of a training step in each of `CANDIDATES`: the best of interleaved repeats, on a copy."""
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
    slowest = max(step(precision, 2) for precision in CANDIDATES)
    left = MAX_SECONDS - (time.perf_counter() - start)
    images = int(min(MAX_IMAGES, max(2, left / (2 * REPEATS * slowest / 2))))
    best = dict.fromkeys(CANDIDATES, float("inf"))
    for repeat in range(REPEATS):
        for precision in CANDIDATES:
            best[precision] = min(best[precision], step(precision, images) / images)
        if repeat and time.perf_counter() - start > MAX_SECONDS:
            break
    return best
