"""How fast is a training epoch, beside the usual recipe and beside the bare step?

    python benchmarks/train_speed.py [--models resnet18,vgg16,densenet121] [--repeats 5]

`ours` is an epoch of train.py, end to end: pixels from the cache, the default augmentation, steps, clipping, the loss
that is shown. `rival` is benchmarks/rival.py. `bare` is forward, backward and optimiser on one batch that lies ready on
the device, in our precision and memory layout, and with our allocator's settings. A second table: does the measured
choice of precision pick the faster one?
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from common import Contestant, Work, contest, ratio, report, rounds, show_ratio

# Images per round and contestant: whole batches of 32, enough that the start of an epoch does not count.
IMAGES = {"resnet18": 256, "densenet121": 64, "vgg16": 32}
GPU_IMAGES, GPU_BATCH = 10_240, 256
TARGETS = {"resnet18": 3.5, "vgg16": 3.0, "densenet121": 2.5}
PRECISION_MODELS = ("resnet18", "mobilenet_v2", "timm/tf_efficientnet_lite0")


def _prepared(model: str, images: int, batch: int, size: int):
    """Our learner and the first `images` training pictures of the phantom."""
    from dataclasses import replace

    from config import compose_config
    from training.trainer import prepare

    flags = {"model": model, "init": "none", "train.batch": batch, "data.size": size}
    learner, dataset, _ = prepare(compose_config([f"data.phantom_count={_phantom_count(images)}"], flags, None))
    part = dataset.part("train")
    assert len(part) >= images
    stores = {name: (store, rows[:images]) for name, (store, rows) in part.stores.items()}
    return learner, replace(part, records=part.records.iloc[:images], stores=stores)


def _phantom_count(images: int) -> int:
    return max(2000, images * 3 // 2)


def _finish(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ours(model: str, images: int, batch: int, size: int, compiled: str = "off") -> Work:
    from training.compilation import training_forward
    from training.loop import train_epoch

    learner, part = _prepared(model, images, batch, size)
    shape = (batch, len(learner.architecture.mean), size, size)
    learner.forward = training_forward(
        learner.model.train(), compiled, learner.precision, shape, learner.device, images // batch
    )
    learner.config.train.epochs = 1000  # of which we train as many as there are rounds

    epochs = iter(range(1, 1000))

    def epoch() -> float:
        began = time.perf_counter()
        train_epoch(learner, part, next(epochs))
        _finish(learner.device)
        return images / (time.perf_counter() - began)

    return epoch


def bare(model: str, images: int, batch: int, size: int) -> Work:
    import torch.nn.functional as F

    from utils import autocast

    learner, part = _prepared(model, images, batch, size)
    architecture = learner.architecture
    item = next(iter(part.batches(learner.device, batch, size, architecture.mean, architecture.std)))
    learner.model.train()

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(images // batch):
            with autocast(learner.device, learner.precision):
                scores = learner.model(item.inputs)
            learner.optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(scores.float(), item.labels).backward()
            learner.optimizer.step()
        _finish(learner.device)
        return images / (time.perf_counter() - began)

    return steps


def rival(folder: str, model: str, batch: int, size: int) -> Work:
    import rival

    return rival.train_epochs(folder, model, size, batch)


def one_precision(model: str, precision: str, images: int, size: int) -> Work:
    """Bare steps of `images` pictures in one precision."""
    import torch
    import torch.nn.functional as F

    from pretrained_models import build_model
    from utils import autocast, pick_device

    device = pick_device("auto")
    network = build_model(model, 4)[0].to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    inputs = torch.randn(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.long, device=device)

    def step() -> float:
        began = time.perf_counter()
        with autocast(device, precision):
            scores = network(inputs)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(scores.float(), labels).backward()
        optimizer.step()
        _finish(device)
        return images / (time.perf_counter() - began)

    return step


def epochs_table(models: list[str], images: int | None, batch: int, size: int, repeats: int) -> None:
    import torch
    from rival import link_pictures

    rows, measured = [], {}
    for model in models:
        count = images or (GPU_IMAGES if torch.cuda.is_available() else IMAGES.get(model, 64))
        learner, part = _prepared(model, count, batch, size)  # draws the phantom, fills the cache, measures precision
        precision = learner.precision
        del learner
        with tempfile.TemporaryDirectory() as folder:
            link_pictures(list(part.records["path"]), list(part.records["label"]), Path(folder))
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
        middle = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
        rows.append(
            {
                "model": model,
                "precision": precision,
                **{name: f"{middle[name]:.1f}" for name in middle},
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
        "target": "wanted",
        "to_bare": "ours / bare",
        "bare_target": "wanted",
    }
    report("train_speed", columns, rows, measured | {"batch": batch, "size": size})


def precision_table(models: list[str], batch: int, size: int, repeats: int) -> None:
    """Whole steps in both precisions, and which one train.py chooses."""
    import torch

    from config import DataConfig
    from dataset.batches import cache_folder
    from pretrained_models import build_model
    from training.precision import choose_precision
    from utils import pick_device

    rows, measured = [], {}
    for model in models:
        device = pick_device("auto")
        network = build_model(model, 4)[0].to(device, memory_format=torch.channels_last)
        chosen = choose_precision("auto", network, model, size, 3, device, cache_folder(DataConfig()), batch)
        del network
        with contest(*(Contestant(p, one_precision, model, p, batch, size) for p in ("fp32", "bf16"))) as contestants:
            rates = rounds(f"{model}, precision", contestants, repeats)
        gain = ratio(rates[chosen], rates["fp32"])
        faster = max(rates, key=lambda p: sorted(rates[p])[len(rates[p]) // 2])
        to_faster = ratio(rates[chosen], rates[faster])
        measured[model] = {
            "chosen": chosen,
            "images_per_second": rates,
            "ratio_to_fp32": gain,
            "ratio_to_faster": to_faster,
        }
        middle = {name: f"{sorted(values)[len(values) // 2]:.1f}" for name, values in rates.items()}
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
    parser.add_argument("--precision-models", default=",".join(PRECISION_MODELS), help="'' leaves the table out")
    parser.add_argument("--images", type=int, help="per round (default: by model, 32 to 256; on a GPU 10,240)")
    parser.add_argument("--batch", type=int, help="default 32; on a GPU 256")
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
