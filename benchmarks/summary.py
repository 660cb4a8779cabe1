"""Print targets and measurements in one table, from the files in benchmarks/results/.

python benchmarks/summary.py [--device cpu]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from common import RESULTS, device_slug, machine, show_ratio
from train_speed import TARGETS

NEEDED = (
    "train_speed",
    "precision_choice",
    "cam_speed",
    "cam_agreement",
    "test_speed",
    "cache_speed",
    "startup",
    "scale",
)


def lines(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield the name, the target, the measurement and whether the target was reached."""

    def at_least(name: str, value: dict[str, float], target: float) -> tuple[str, str, str, bool]:
        return name, f"at least {target:g}", show_ratio(value), value["median"] >= target

    if "train_speed" in results:
        for model, target in TARGETS.items():
            if model in results["train_speed"]:
                ratios = results["train_speed"][model]["ratio"]
                yield at_least(f"{model}: training / usual recipe", ratios["rival"], target)
                yield at_least(f"{model}: training / bare step", ratios["bare"], 0.95)
    if "precision_choice" in results:
        for model, entry in results["precision_choice"].items():
            if isinstance(entry, dict):
                yield at_least(f"{model}: {entry['chosen']} (chosen) / fp32", entry["ratio_to_fp32"], 1.0)
                yield at_least(f"{model}: {entry['chosen']} (chosen) / the faster one", entry["ratio_to_faster"], 0.95)
    if "resnet18, batch 32" in results.get("cam_speed", {}):
        ratios = results["cam_speed"]["resnet18, batch 32"]["ratio"]
        yield at_least("Grad-CAM, resnet18, batch 32 / grad-cam", ratios["grad-cam"], 8)
        yield at_least("Grad-CAM, resnet18, batch 32 / torchcam", ratios["torchcam"], 3)
        yield at_least("Grad-CAM, resnet18, batch 32 / bare forward pass", ratios["forward"], 0.85)
        if "family" in ratios:  # older results have none
            yield at_least("Grad-CAM, resnet18, batch 32 / all seven methods together", ratios["family"], 1 / 1.3)
    if "cam_agreement" in results:
        lowest = min(results["cam_agreement"]["correlations"])
        yield "bf16 maps: lowest correlation with fp32", "at least 0.99", f"{lowest:.4f}", lowest >= 0.99
        furthest = results["cam_agreement"]["furthest"]
        yield "bf16 maps: peak moved by, cells", "at most 1", str(furthest), furthest <= 1
    if "test_speed" in results:
        yield at_least("test.py / usual recipe", results["test_speed"]["evaluation"]["ratio"], 3)
    if "cache_speed" in results:
        yield at_least("cache / PIL, per core", results["cache_speed"]["ratio"], 1.5)
    if "startup" in results:
        ratio = results["startup"]["resnet18"]["ratio"]
        yield "command to first step / bare", "at most 1.3", show_ratio(ratio), ratio["median"] <= 1.3
    if "scale" in results:
        for name, value in results["scale"]["slopes"].items():
            yield f"scale, {name}: log-log slope", "at most 1.1", f"{value:.2f}", value <= 1.1
    for name in NEEDED:
        if name not in results:
            yield name, "a result", "MISSING", False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="device in the files' names (default: this machine's)")
    arguments = parser.parse_args()
    arguments.device = arguments.device or device_slug(machine())
    files = {p.name.removesuffix(f"-{arguments.device}.json"): p for p in RESULTS.glob(f"*-{arguments.device}.json")}
    results = {name: json.loads(path.read_text())["measured"] for name, path in files.items()}
    print(f"\ntargets and measurements ({arguments.device}); medians of paired ratios with their range over the rounds")
    rows = list(lines(results))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True))
        print(cells, "" if row[3] else "NOT REACHED")


if __name__ == "__main__":
    main()
