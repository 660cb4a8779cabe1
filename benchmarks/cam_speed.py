"""How many Grad-CAM maps a second, and are they the same maps?

    python benchmarks/cam_speed.py [--models resnet18,vgg16,densenet121] [--batches 1,8,32] [--repeats 5]

`ours` is localization/cam.py in the precision that train.py would choose; `fp32` the same without autocast; `forward` a
bare forward pass in our precision. The rivals get their usual call: fp32, an ordinary model, the layer that we use
(of DenseNet `features`, as their users do). The difference is the largest |theirs - ours in fp32| after each map is
divided by its own maximum: nobody should be fast and wrong. A second table, on a ResNet18 trained on the phantom: bf16
maps beside fp32 maps, image by image.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
from common import Contestant, Work, ratio, report, rounds, show_ratio

CLASS = 1  # the class explained: any
RIVALS = ("grad-cam", "torchcam", "captum")
TRAINING = ("preset=demo", "train.epochs=4")  # of the model whose maps are compared


def _network(model: str, ours: bool):
    """The same random weights, and for us the same moved statistics, in every process."""
    import torch

    from pretrained_models import build_model
    from utils import pick_device

    device = pick_device("auto") if ours else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network, architecture, _ = build_model(model, 4)
    network.eval().to(device)
    return (network.to(memory_format=torch.channels_last) if ours else network), architecture, device


def _inputs(count: int, size: int, device, ours: bool):
    import torch

    inputs = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1)).expand(-1, 3, -1, -1)
    inputs = torch.nn.functional.avg_pool2d(inputs, 9, 1, 4) * 12 - 6  # smooth, as pictures are
    layout = torch.channels_last if ours else torch.contiguous_format
    return inputs.contiguous(memory_format=layout).to(device)


def _timed(call, count: int, device, file: str) -> Work:
    """Calls `call`, which returns maps (count, h, w), and keeps the last maps in `file`."""
    import torch

    def work() -> float:
        began = time.perf_counter()
        maps = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        if maps is not None:
            np.save(file, np.asarray(maps, np.float32))
        return count / seconds

    return work


def chosen_precision(model: str, size: int) -> str:
    """What train.py would choose for batches of 32, measured or remembered."""
    from config import DataConfig
    from dataset.batches import cache_folder
    from training.precision import choose_precision

    network, _, device = _network(model, True)
    return choose_precision("auto", network, model, size, 3, device, cache_folder(DataConfig()))


def ours(model: str, count: int, size: int, file: str, precision: str) -> Work:
    import torch

    from localization.cam import cut_pass, grad_cam
    from pretrained_models import cam_layer

    network, architecture, device = _network(model, True)
    layer = cam_layer(network, architecture, size)
    inputs = _inputs(count, size, device, True)
    targets = torch.full((count,), CLASS, device=device)
    return _timed(lambda: grad_cam(cut_pass(network, layer, inputs, targets, precision)).cpu(), count, device, file)


def forward(model: str, count: int, size: int, file: str, precision: str) -> Work:
    import torch

    from utils import autocast

    network, _, device = _network(model, True)
    inputs = _inputs(count, size, device, True)

    def call() -> None:
        with torch.inference_mode(), autocast(device, precision):
            network(inputs)

    return _timed(call, count, device, file)


def rival(name: str, model: str, count: int, size: int, file: str) -> Work:
    from pretrained_models import cam_layer

    network, architecture, device = _network(model, False)
    target = network.get_submodule(cam_layer(network, architecture, size).name)
    inputs = _inputs(count, size, device, False)
    if name == "grad-cam":
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        method, targets = GradCAM(network, [target]), [ClassifierOutputTarget(CLASS)] * count
        return _timed(lambda: method(inputs, targets), count, device, file)  # maps come enlarged to the input's size
    if name == "torchcam":
        from torchcam.methods import GradCAM as TorchcamGradCAM

        extractor = TorchcamGradCAM(network, target)
        return _timed(lambda: extractor([CLASS] * count, network(inputs))[0].cpu(), count, device, file)
    from captum.attr import LayerGradCam

    attribution = LayerGradCam(network, target)

    def call():
        maps = attribution.attribute(inputs, target=CLASS, relu_attributions=True)
        return maps.detach()[:, 0].cpu()

    return _timed(call, count, device, file)


def _difference(name: str, theirs: np.ndarray, own: np.ndarray) -> float:
    """The largest difference of two sets of maps, each map divided by its maximum."""
    if name == "grad-cam":  # it stretches each map to 0..1 and enlarges it: so do we here, to compare
        import cv2

        own = own - own.min((1, 2), keepdims=True)
        own = own / np.maximum(own.max((1, 2), keepdims=True), 1e-12)
        own = np.stack([cv2.resize(m, theirs.shape[:0:-1]) for m in own])
    peaks = [np.maximum(maps.max((1, 2), keepdims=True), 1e-12) for maps in (theirs, own)]
    return float(np.abs(theirs / peaks[0] - own / peaks[1]).max())


def speed_table(models: list[str], batches: list[int], size: int, repeats: int) -> None:
    rows, measured = [], {}
    for model in models:
        precision = chosen_precision(model, size)
        for count in batches:
            with tempfile.TemporaryDirectory() as folder:
                files = {name: f"{folder}/{name}.npy" for name in ("ours", "fp32", "forward", *RIVALS)}
                contestants = [
                    Contestant("ours", ours, model, count, size, files["ours"], precision),
                    Contestant("fp32", ours, model, count, size, files["fp32"], "fp32"),
                    Contestant("forward", forward, model, count, size, files["forward"], precision),
                    *(Contestant(name, rival, name, model, count, size, files[name]) for name in RIVALS),
                ]
                rates = rounds(f"{model}, batch {count}", contestants, repeats)
                maps = {name: np.load(file) for name, file in files.items() if name != "forward"}
            against = {name: ratio(rates["ours"], rates[name]) for name in ("forward", *RIVALS)}
            differences = {name: _difference(name, maps[name], maps["fp32"]) for name in RIVALS}
            empty = float((maps["fp32"].max((1, 2)) == 0).mean())
            measured[f"{model}, batch {count}"] = {
                "precision": precision,
                "maps_per_second": rates,
                "ratio": against,
                "difference_to_our_fp32_maps": differences,
                "empty_maps": empty,
            }
            middle = {name: f"{sorted(values)[len(values) // 2]:.1f}" for name, values in rates.items()}
            rows.append(
                {
                    "model": model,
                    "batch": count,
                    "precision": precision,
                    **middle,
                    **{f"to_{name}": show_ratio(value) for name, value in against.items()},
                    "difference": ", ".join(f"{value:.0e}" for value in differences.values()),
                }
            )
    columns = {"model": "model", "batch": "batch", "precision": "precision", "ours": "ours, maps/s", "fp32": "in fp32"}
    columns |= {"forward": "forward", **{name: name for name in RIVALS}}
    columns |= {f"to_{name}": f"ours / {name}" for name in ("forward", *RIVALS)}
    report("cam_speed", columns | {"difference": "differences of the rivals' maps"}, rows, measured | {"size": size})


def agreement_table() -> None:
    """The maps of a trained ResNet18 in bf16 beside those in fp32: correlation, and how far the peak moves in cells."""
    import torch

    from config import compose_config
    from localization.cam import cut_pass, grad_cam
    from pretrained_models import cam_layer
    from training.checkpoints import load_checkpoint
    from training.selection import select
    from training.trainer import train
    from utils import start_logging

    start_logging()
    with tempfile.TemporaryDirectory() as folder:
        run = train(compose_config(list(TRAINING), {"save": folder}, None))
        checkpoint = load_checkpoint(run / "best.pt")
        chosen = select(compose_config([], {}, None), run, {})
        part = chosen.dataset().part("test")
        model = checkpoint.model().to(chosen.device)
    architecture = checkpoint.architecture
    layer = cam_layer(model, architecture, checkpoint.size)
    maps = {"fp32": [], "bf16": []}
    for item in part.batches(chosen.device, 32, part.side, architecture.mean, architecture.std):
        targets = None
        for precision, found in maps.items():
            cut = cut_pass(model, layer, item.inputs, targets, precision)
            targets = cut.targets  # both explain the class that fp32 predicts
            found.append(grad_cam(cut).cpu())
    full, half = (torch.cat(found).numpy() for found in maps.values())
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
        "lowest": "lowest correlation (wanted 0.99)",
        "median": "median",
        "moved": "peaks moved",
        "furthest": "furthest, cells (wanted 1)",
    }
    report("cam_agreement", columns, [row], row | {"correlations": [round(float(c), 6) for c in correlation]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,vgg16,densenet121", help="torchvision names, with commas")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-agreement", action="store_true", help="leave out the second table (it trains a model)")
    arguments = parser.parse_args()
    batches = [int(b) for b in arguments.batches.split(",")]
    speed_table(arguments.models.split(","), batches, arguments.size, arguments.repeats)
    if not arguments.no_agreement:
        agreement_table()


if __name__ == "__main__":
    main()
