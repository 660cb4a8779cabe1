"""The precision that trains fastest on this device: measured once, stored and logged."""

from __future__ import annotations

import copy
import itertools
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
REPEATS = 6  # the fastest counts, because other processes slow down single steps


def choose_precision(
    model: nn.Module, name: str, shape: tuple[int, int, int, int], device: torch.device, folder: Path
) -> str:
    """Return the faster of fp32 and bf16 autocast for training steps of `model` on `device`.

    A measurement takes about `MAX_SECONDS`. Results are stored in `precision.json` in `folder`, by model, input size,
    batch, device and torch version.

    Args:
        shape: of a step's inputs, (n, channels, side, side).
    """
    file = folder / "precision.json"
    key = f"{name}, {shape[-1]}px, batch {shape[0]}, {device_name(device)}, torch {torch.__version__}"
    measured = _read(file)
    if key not in measured:
        log.info("measuring which precision trains faster on this device ...")
        seconds = measure_precisions(model, shape, device)
        measured = _read(file) | {key: seconds}  # another process may have added to it meanwhile
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, measured)
    seconds = measured[key]
    chosen = min(CANDIDATES, key=lambda p: seconds[p])
    times = ", ".join(f"{p} {seconds[p] * 1000:.0f} ms" for p in CANDIDATES)
    log.info(f"precision {chosen}: a training step took {times} per image ({key})")
    return chosen


def _read(file: Path) -> dict[str, dict[str, float]]:
    """Return the valid entries of the file; those that are missing or damaged are measured again."""
    try:
        entries = json.loads(file.read_text()).items()
        return {key: seconds for key, seconds in entries if all(seconds[p] > 0 for p in CANDIDATES)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return {}


def measure_precisions(model: nn.Module, shape: tuple[int, int, int, int], device: torch.device) -> dict[str, float]:
    """Return the seconds per image of a training step with inputs of `shape`, for each of `CANDIDATES`.

    Steps of two and of up to `MAX_IMAGES` images are timed on a copy of `model`, and extrapolated linearly to the full
    batch. A small step alone would overrate the cost of casting the weights, which does not depend on the number of
    images (it is large for the classifier of VGG).
    """
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).train()
    start = time.perf_counter()
    # The first steps load the kernels and show how many images fit into the time. Batch normalisation of a 1×1 map
    # needs at least two images.
    few = 2
    slowest = max(_step_seconds(model, (few, *shape[1:]), precision, device) for precision in CANDIDATES)
    left = MAX_SECONDS - (time.perf_counter() - start)
    many = int(min(MAX_IMAGES, max(2 * few, left / (2 * slowest / few))))
    best = dict.fromkeys(itertools.product(CANDIDATES, (few, many)), math.inf)
    for _ in range(REPEATS):
        for (precision, images), fastest in best.items():
            best[precision, images] = min(fastest, _step_seconds(model, (images, *shape[1:]), precision, device))
        if time.perf_counter() - start > MAX_SECONDS * 0.7:
            break
    seconds, batch = {}, max(shape[0], many)
    for precision in CANDIDATES:
        one_more = max(best[precision, many] - best[precision, few], 0) / (many - few)
        seconds[precision] = (best[precision, many] + one_more * (batch - many)) / batch
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
