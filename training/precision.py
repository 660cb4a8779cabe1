"""Which precision trains fastest here: measured, remembered, and said."""

from __future__ import annotations

import copy
import json
import math
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
    model: nn.Module, name: str, shape: tuple[int, int, int, int], device: torch.device, folder: Path
) -> str:
    """Return the faster of fp32 and bf16 autocast for training steps of `model` on `device`.

    Measured on at most `MAX_IMAGES` images within about `MAX_SECONDS`, and remembered in `precision.json` in `folder`
    by model, input size, batch, device and torch version.

    Args:
        shape: of a step's inputs, (n, channels, side, side).
    """
    memory = folder / "precision.json"
    key = f"{name}, {shape[-1]}px, batch {shape[0]}, {device_name(device)}, torch {torch.__version__}"
    remembered = _read(memory)
    if key not in remembered:
        log.info("measuring which precision trains faster here ...")
        seconds = measure_precisions(model, shape, device)
        remembered = _read(memory) | {key: seconds}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(memory, remembered)
    seconds = remembered[key]
    chosen = min(CANDIDATES, key=lambda p: seconds[p])
    times = ", ".join(f"{p} {seconds[p] * 1000:.0f} ms" for p in CANDIDATES)
    log.info(f"precision {chosen}: a training step took {times} per image ({key})")
    return chosen


def _read(memory: Path) -> dict[str, dict[str, float]]:
    try:
        content = json.loads(memory.read_text())
        return {k: v for k, v in content.items() if all(isinstance(v[p], float) for p in CANDIDATES)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # absent, or not what we wrote: it is measured again


def measure_precisions(model: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> dict[str, float]:
    """Return the seconds per image of a training step with inputs of `shape`, for each of `CANDIDATES`.

    Steps of two and of up to `MAX_IMAGES` images are timed on a copy of `model`, the best of interleaved repeats, and
    the line through both is followed to the whole batch: casting the weights costs the same however many images there
    are (VGG's classifier), and a small step alone would blame the precision for it.
    """
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    start = time.perf_counter()
    # The first steps make the kernels; they also tell how many images fit into the time. Two images at the least: batch
    # normalisation of a 1×1 map needs them.
    few = 2
    slowest = max(_step_seconds(model, (few, *shape[1:]), precision, device) for precision in CANDIDATES)
    left = MAX_SECONDS - (time.perf_counter() - start)
    many = int(min(MAX_IMAGES, max(2 * few, left / (2 * slowest / few))))
    best = {(precision, images): float("inf") for precision in CANDIDATES for images in (few, many)}
    for _ in range(REPEATS):
        for precision, images in best:
            took = _step_seconds(model, (images, *shape[1:]), precision, device)
            best[precision, images] = min(best[precision, images], took)
        if time.perf_counter() - start > MAX_SECONDS * 0.7:
            break
    seconds, batch = {}, shape[0]
    for precision in CANDIDATES:
        one_more = max(best[precision, many] - best[precision, few], 0) / (many - few)
        seconds[precision] = (best[precision, many] + one_more * max(0, batch - many)) / max(batch, many)
    return seconds


def _step_seconds(model: nn.Module, shape: tuple[int, int, int, int], precision: str, device: torch.device) -> float:
    """Return the seconds of one forward and backward pass."""
    inputs = torch.linspace(-2, 2, math.prod(shape), device=device).view(shape).to(memory_format=torch.channels_last)
    began = time.perf_counter()
    with autocast(device, precision):
        loss = F.cross_entropy(model(inputs).float(), torch.zeros(shape[0], dtype=torch.long, device=device))
    loss.backward()
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
