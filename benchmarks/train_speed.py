"""The speed of a training epoch beside the usual recipe and the bare step.

    python benchmarks/train_speed.py [--models resnet18,vgg16,densenet121] [--repeats 5]

`ours` is an epoch of train.py end to end: pixels from the cache, the default augmentation, steps, clipping, and the
loss that is displayed. `rival` is benchmarks/rival.py. `bare` is forward, backward and optimiser on one prepared batch
on the device, in our precision, memory layout and allocator settings. A second table shows whether the measured choice
of precision picks the faster one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common import Contestant, Work, contest, finish, ratio, report, rounds, show_medians, show_ratio

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dataset.image_set import ImageSet
    from training.loop import Learner

# Images per round and contestant: whole batches of 32, fewer for slower models. VGG16's epoch is a single step, so the
# start of an epoch counts in full, for ours and for the rival, but not for the bare step.
IMAGES = {"resnet18": 256, "densenet121": 64, "vgg16": 32}
GPU_IMAGES, GPU_BATCH = 10_240, 256
TARGETS = {"resnet18": 3.5, "vgg16": 3.0, "densenet121": 2.5}
PRECISION_MODELS = ("resnet18", "mobilenet_v2", "timm/tf_efficientnet_lite0")


def _prepared(model: str, images: int, batch: int, size: int) -> tuple[Learner, ImageSet]:
    """Return our learner and the first `images` training images of the phantom."""
    from dataclasses import replace

    from config import compose_config
    from training.trainer import prepare

    flags = {"model": model, "init": "none", "train.batch": batch, "data.size": size}
    training = prepare(compose_config([f"data.phantom_count={_phantom_count(images)}"], flags, None))
    image_set = training.dataset.images("train")
    assert len(image_set) >= images
    stores = {name: (store, rows[:images]) for name, (store, rows) in image_set.stores.items()}
    return training.learner, replace(image_set, records=image_set.records.iloc[:images], stores=stores)


def _phantom_count(images: int) -> int:
    return max(2000, images * 3 // 2)


def ours(model: str, images: int, batch: int, size: int, compiled: str = "off") -> Work:
    from training.compilation import training_forward
    from training.loop import train_epoch

    learner, image_set = _prepared(model, images, batch, size)
    learner.config.train.compile = compiled
    learner.forward = training_forward(learner, steps=images // batch)
    learner.config.train.epochs = 1000  # only as many as there are rounds are trained

    epochs = iter(range(1, 1000))

    def epoch() -> float:
        began = time.perf_counter()
        train_epoch(learner, image_set, next(epochs))
        finish(learner.device)
        return images / (time.perf_counter() - began)

    return epoch


def _bare_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor, precision: str
) -> Callable[[], None]:
    """Return a training step on one prepared batch: forward, backward, optimiser, nothing else."""
    import torch.nn.functional as F

    from utils import autocast

    def step() -> None:
        with autocast(inputs.device, precision):
            scores = network(inputs)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()

    return step


def bare(model: str, images: int, batch: int, size: int) -> Work:
    learner, image_set = _prepared(model, images, batch, size)
    item = next(iter(image_set.batches(learner.device, batch, learner.architecture)))
    step = _bare_step(learner.model.train(), learner.optimizer, item.inputs, item.labels, learner.precision)

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(images // batch):
            step()
        finish(learner.device)
        return images / (time.perf_counter() - began)

    return steps


def rival(folder: str, model: str, batch: int, size: int) -> Work:
    import rival

    return rival.train_epochs(folder, model, size, batch)


def one_precision(model: str, precision: str, images: int, size: int) -> Work:
    """Time a bare step on `images` images in one precision."""
    import torch

    from pretrained_models import build_model
    from utils import pick_device

    device = pick_device("auto")
    network = build_model(model, 4)[0].to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    inputs = torch.randn(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    step = _bare_step(network, optimizer, inputs, torch.zeros(images, dtype=torch.long, device=device), precision)

    def timed() -> float:
        began = time.perf_counter()
        step()
        finish(device)
        return images / (time.perf_counter() - began)

    return timed


def epochs_table(models: list[str], images: int | None, batch: int, size: int, repeats: int) -> None:
    import torch
    from rival import link_images

    rows, measured = [], {}
    for model in models:
        count = images or (GPU_IMAGES if torch.cuda.is_available() else IMAGES.get(model, 64))
        learner, image_set = _prepared(model, count, batch, size)  # fills the cache, measures precision
        precision = learner.precision
        del learner
        with tempfile.TemporaryDirectory() as folder:
            link_images(list(image_set.records["path"]), list(image_set.records["label"]), Path(folder))
            compiled = (
                [Contestant("compiled", ours, model, count, batch, size, "on")] if torch.cuda.is_available() else []
            )
            with contest(
                *compiled,
                Contestant("ours", ours, model, count, batch, size),
                Contestant("rival", rival, folder, model, batch, size),
                Contestant("bare", bare, model, count, batch, size),
            ) as contestants:
                rates = rounds(model, contestants, repeats)
        against = {name: ratio(rates["ours"], rates[name]) for name in ("rival", "bare")}
        measured[model] = {"precision": precision, "images_per_second": rates, "ratio": against}
        rows.append(
            {
                "model": model,
                "precision": precision,
                **show_medians(rates, 1),
                "to_rival": show_ratio(against["rival"]),
                "target": f"{TARGETS[model]:.1f}" if model in TARGETS else "",
                "to_bare": show_ratio(against["bare"]),
                "bare_target": "0.95",
            }
        )
    columns = {
        "model": "model",
        "precision": "precision",
        "ours": "ours, images/s",
        "rival": "rival",
        "bare": "bare step",
        **({"compiled": "ours, compiled"} if torch.cuda.is_available() else {}),
        "to_rival": "ours / rival",
        "target": "target",
        "to_bare": "ours / bare",
        "bare_target": "target",
    }
    report("train_speed", columns, rows, measured | {"batch": batch, "size": size})


def precision_table(models: list[str], batch: int, size: int, repeats: int) -> None:
    """Time whole steps in both precisions, and report which one train.py chooses."""
    import torch

    from config import DataConfig
    from dataset.cache import cache_folder
    from pretrained_models import build_model
    from training.precision import choose_precision
    from utils import pick_device

    rows, measured = [], {}
    for model in models:
        device = pick_device("auto")
        network = build_model(model, 4)[0].to(device, memory_format=torch.channels_last)
        chosen = choose_precision(network, model, (batch, 3, size, size), device, cache_folder(DataConfig()))
        del network
        with contest(*(Contestant(p, one_precision, model, p, batch, size) for p in ("fp32", "bf16"))) as contestants:
            rates = rounds(f"{model}, precision", contestants, repeats)
        gain = ratio(rates[chosen], rates["fp32"])
        faster = max(rates, key=lambda p: statistics.median(rates[p]))
        to_faster = ratio(rates[chosen], rates[faster])
        measured[model] = {
            "chosen": chosen,
            "images_per_second": rates,
            "ratio_to_fp32": gain,
            "ratio_to_faster": to_faster,
        }
        middle = show_medians(rates, 1)
        rows.append(
            {"model": model, **middle, "chosen": chosen, "gain": show_ratio(gain), "faster": show_ratio(to_faster)}
        )
    columns = {
        "model": "model",
        "fp32": "fp32, images/s",
        "bf16": "bf16",
        "chosen": "chosen",
        "gain": "chosen / fp32",
        "faster": "chosen / the faster",
    }
    report("precision_choice", columns, rows, measured | {"batch": batch, "size": size})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,vgg16,densenet121", help="torchvision names, with commas")
    parser.add_argument("--precision-models", default=",".join(PRECISION_MODELS), help="'' omits the table")
    parser.add_argument("--images", type=int, help="images per round (default: 32 to 256, by model; on a GPU 10,240)")
    parser.add_argument("--batch", type=int, help="batch size (default 32; on a GPU 256)")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    import torch

    arguments.batch = arguments.batch or (GPU_BATCH if torch.cuda.is_available() else 32)
    if arguments.models:
        epochs_table(arguments.models.split(","), arguments.images, arguments.batch, arguments.size, arguments.repeats)
    if arguments.precision_models:
        precision_table(arguments.precision_models.split(","), arguments.batch, arguments.size, arguments.repeats)


if __name__ == "__main__":
    main()
