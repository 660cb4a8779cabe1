"""Grad-CAM maps per second beside grad-cam and torchcam, and whether the maps are the same.

    python benchmarks/cam_speed.py [--models resnet18,vgg16,densenet121] [--batches 1,8,32] [--repeats 5]

`ours` is localization/ in the precision that train.py would choose, `fp32` the same without autocast, timed once,
`forward` a bare forward pass in our precision, `family` all seven methods that share one pass. The rivals get their
usual call: fp32, an ordinary model, the layer that we use (`features` for DenseNet, as users do). The difference is the
largest |theirs - ours in fp32| with each map divided by its own maximum, since speed counts only if the maps are right.
A second table compares bf16 with fp32 maps, image by image, on a ResNet18 trained on the phantom.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Contestant, Work, contest, finish, ratio, report, rounds, show_medians, show_ratio

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pretrained_models import Architecture

CLASS = 2  # the class explained: one that has evidence in all three random networks
RIVALS = ("grad-cam", "torchcam", "captum")
FAMILY = ("gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigencam", "eigengradcam")
TRAINING = ("preset=demo", "train.epochs=4")  # of the model whose bf16 and fp32 maps are compared


def _network(model: str, ours: bool) -> tuple[nn.Module, Architecture, torch.device]:
    """Return the network with the same random weights in every process, its architecture and its device.

    With `ours`, it has the memory layout and the allocator settings of draw_cam.py.
    """
    import torch

    from pretrained_models import build_model
    from utils import pick_device

    device = pick_device("auto") if ours else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network, architecture, _ = build_model(model, 4)
    network.eval().to(device)
    return (network.to(memory_format=torch.channels_last) if ours else network), architecture, device


def _inputs(count: int, size: int, device: torch.device, ours: bool) -> torch.Tensor:
    import torch

    inputs = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)
    inputs = torch.nn.functional.avg_pool2d(inputs, 9, 1, 4) * 12 - 6  # smooth, as images are
    layout = torch.channels_last if ours else torch.contiguous_format
    return inputs.contiguous(memory_format=layout).to(device)


def _timed(name: str, call: Callable[[torch.Tensor], Any], device: torch.device, size: int, own: bool) -> Work:
    """Return the work: `call` on a batch of `count` inputs, whose maps (count, h, w) are saved as `folder`/NAME.npy."""

    def work(count: int, folder: str) -> float:
        inputs = _inputs(count, size, device, own)
        began = time.perf_counter()
        maps = call(inputs)
        finish(device)
        seconds = time.perf_counter() - began
        if maps is not None:
            np.save(f"{folder}/{name}.npy", np.asarray(maps, np.float32))
        return count / seconds

    return work


def chosen_precision(model: str, size: int) -> str:
    """Return the precision that train.py would choose for batches of 32, measured or remembered."""
    from config import DataConfig
    from dataset.cache import cache_folder
    from training.precision import choose_precision

    network, _, device = _network(model, True)
    return choose_precision(network, model, (32, 3, size, size), device, cache_folder(DataConfig()))


def ours(model: str, size: int, precision: str) -> Work:
    import torch

    from localization.methods.cut import cut_pass
    from localization.methods.gradients import grad_cam
    from localization.methods.layers import find_layers

    network, architecture, device = _network(model, True)
    layers = find_layers(network, architecture, size)

    def call(inputs: torch.Tensor) -> torch.Tensor:
        targets = torch.full((len(inputs),), CLASS, device=device)
        (features,) = cut_pass(network, layers, inputs, targets, precision).features
        return grad_cam(features.activations, features.gradients).cpu()

    return _timed(precision, call, device, size, True)


def family(model: str, size: int, precision: str) -> Work:
    """Draw all seven methods that share one pass; the maps returned are Grad-CAM's."""
    import torch

    from localization.explainer import Explainer
    from localization.methods.explanation import Settings
    from localization.methods.table import METHODS

    network, architecture, device = _network(model, True)
    explainer = Explainer.from_architecture(network, architecture, size, settings=Settings(precision=precision))

    def call(inputs: torch.Tensor) -> torch.Tensor:
        explanation = explainer.explain(inputs, torch.full((len(inputs),), CLASS, device=device))
        maps = {name: METHODS[name].function(explanation).cpu() for name in FAMILY}
        return maps["gradcam"]

    return _timed("family", call, device, size, True)


def forward(model: str, size: int, precision: str) -> Work:
    import torch

    from utils import autocast

    network, _, device = _network(model, True)

    def call(inputs: torch.Tensor) -> None:
        with torch.inference_mode(), autocast(device, precision):
            network(inputs)

    return _timed("forward", call, device, size, True)


def rival(name: str, model: str, size: int) -> Work:
    from localization.methods.layers import find_layers

    network, architecture, device = _network(model, False)
    target = network.get_submodule(find_layers(network, architecture, size)[0].name)
    if name == "grad-cam":
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        method, output = GradCAM(network, [target]), ClassifierOutputTarget(CLASS)

        def call(inputs: torch.Tensor) -> np.ndarray:
            return method(inputs, [output] * len(inputs))  # enlarged to the input's size

    elif name == "torchcam":
        from torchcam.methods import GradCAM as TorchcamGradCAM

        extractor = TorchcamGradCAM(network, target)

        def call(inputs: torch.Tensor) -> torch.Tensor:
            return extractor([CLASS] * len(inputs), network(inputs))[0].cpu()

    else:
        from captum.attr import LayerGradCam

        attribution = LayerGradCam(network, target)

        def call(inputs: torch.Tensor) -> torch.Tensor:
            return attribution.attribute(inputs, target=CLASS, relu_attributions=True).detach()[:, 0].cpu()

    return _timed(name, call, device, size, False)


def _difference(name: str, theirs: np.ndarray, ours: np.ndarray) -> float:
    """Return the largest difference between two sets of maps, each map divided by its maximum."""
    if name == "grad-cam":  # it stretches each map to 0..1 and enlarges it, so do the same to ours
        import cv2

        ours = ours - ours.min((1, 2), keepdims=True)
        ours = ours / np.maximum(ours.max((1, 2), keepdims=True), 1e-12)
        ours = np.stack([cv2.resize(m, theirs.shape[:0:-1]) for m in ours])
    peaks = [np.maximum(maps.max((1, 2), keepdims=True), 1e-12) for maps in (theirs, ours)]
    return float(np.abs(theirs / peaks[0] - ours / peaks[1]).max())


def _contests(
    model: str, batches: list[int], size: int, repeats: int, precision: str, folder: Path
) -> dict[int, tuple[dict[str, list[float]], dict[str, dict[str, float]], dict[str, np.ndarray]]]:
    """Return, by batch, everyone's rates, our ratios to them, and the maps."""
    results = {count: ({}, {}, {}) for count in batches}
    setups = {"forward": (forward, model, size, precision), "family": (family, model, size, precision)}
    setups |= {n: (rival, n, model, size) for n in RIVALS}
    for name, setup in setups.items():  # one at a time, since all together need more memory than the machine has
        with contest(Contestant("ours", ours, model, size, precision), Contestant(name, *setup)) as pair:
            for count, (rates, against, maps) in results.items():
                new = rounds(f"{model}, batch {count}, {name}", pair, repeats, count, str(folder))
                against[name] = ratio(new["ours"], new[name])
                rates |= new | rates  # ours: the rate measured against the first contestant
                if name in RIVALS:
                    maps[name] = np.load(folder / f"{name}.npy")
    with Contestant("fp32", ours, model, size, "fp32") as full:
        for count, (rates, _, maps) in results.items():
            full.measure(count, str(folder))
            rates["fp32"] = [full.measure(count, str(folder))]
            maps["fp32"] = np.load(folder / "fp32.npy")
    return results


def speed_table(models: list[str], batches: list[int], size: int, repeats: int) -> None:
    rows, measured = [], {}
    for model in models:
        precision = chosen_precision(model, size)
        with tempfile.TemporaryDirectory() as folder:
            results = _contests(model, batches, size, repeats, precision, Path(folder))
        for count, (rates, against, maps) in results.items():
            differences = {name: _difference(name, maps[name], maps["fp32"]) for name in RIVALS}
            measured[f"{model}, batch {count}"] = {
                "precision": precision,
                "maps_per_second": rates,
                "ratio": against,
                "difference_to_our_fp32_maps": differences,
                "empty_maps": float((maps["fp32"].max((1, 2)) == 0).mean()),
            }
            rows.append(
                {
                    "model": model,
                    "batch": count,
                    "precision": precision,
                    **show_medians(rates, 1),
                    **{f"to_{name}": show_ratio(value) for name, value in against.items()},
                    "difference": f"{max(differences.values()):.0e}",
                }
            )
    columns = {"model": "model", "batch": "batch", "precision": "precision", "ours": "ours, maps/s", "fp32": "in fp32"}
    columns |= {"forward": "forward", "family": "seven methods", **{name: name for name in RIVALS}}
    columns |= {f"to_{name}": f"ours / {name}" for name in ("forward", "family", *RIVALS)}
    report("cam_speed", columns | {"difference": "largest difference"}, rows, measured | {"size": size})


def agreement_table() -> None:
    """Compare a trained ResNet18's maps in bf16 and fp32: their correlation, and by how many cells the peak moves."""
    import torch

    from command_line import start_logging
    from config import compose_config
    from experiment.checkpoint import load_checkpoint
    from experiment.selection import select
    from localization.methods.cut import cut_pass
    from localization.methods.gradients import grad_cam
    from localization.methods.layers import find_layers
    from training.trainer import train

    start_logging()
    with tempfile.TemporaryDirectory() as folder:
        run = train(compose_config(list(TRAINING), {"save": folder}, None))
        checkpoint = load_checkpoint(run / "best.pt")
        chosen = select(compose_config([], {}, None), run, {})
        image_set = chosen.dataset().images("test")
        model = checkpoint.model().to(chosen.device)
    architecture = checkpoint.architecture
    layers = find_layers(model, architecture, checkpoint.size)
    maps = {"fp32": [], "bf16": []}
    for item in image_set.batches(chosen.device, 32, architecture):
        targets = None
        for precision, cams in maps.items():
            cut = cut_pass(model, layers, item.inputs, targets, precision)
            targets = cut.targets  # both explain the class that fp32 predicts
            cams.append(grad_cam(cut.features[0].activations, cut.features[0].gradients).cpu())
    full, half = (torch.cat(cams).numpy() for cams in maps.values())
    seen = full.max((1, 2)) > 0
    flat = [m[seen].reshape(seen.sum(), -1) for m in (full, half)]
    correlation = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*flat, strict=True)])
    peaks = [np.stack(np.unravel_index(m.argmax(1), full.shape[1:]), 1) for m in flat]
    moved = np.abs(peaks[0] - peaks[1]).max(1)
    row = {
        "model": f"resnet18, {full.shape[1]}×{full.shape[2]} cells",
        "images": len(full),
        "empty": int((~seen).sum()),
        "lowest": f"{correlation.min():.4f}",
        "median": f"{np.median(correlation):.5f}",
        "moved": f"{int((moved > 0).sum())}",
        "furthest": int(moved.max()),
    }
    columns = {
        "model": "model",
        "images": "images",
        "empty": "empty maps",
        "lowest": "lowest correlation (target 0.99)",
        "median": "median",
        "moved": "peaks moved",
        "furthest": "furthest, cells (target 1)",
    }
    report("cam_agreement", columns, [row], row | {"correlations": [round(float(c), 6) for c in correlation]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,vgg16,densenet121", help="torchvision names, with commas")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-agreement", action="store_true", help="leave out the second table, which trains a model")
    arguments = parser.parse_args()
    batches = [int(b) for b in arguments.batches.split(",")]
    speed_table(arguments.models.split(","), batches, arguments.size, arguments.repeats)
    if not arguments.no_agreement:
        agreement_table()


if __name__ == "__main__":
    main()
