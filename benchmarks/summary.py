"""What was wanted and what was measured, in one table, from the files in benchmarks/results/.

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


def lines(found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, str, bool]]:
    """What, wanted, measured, and whether it was reached."""

    def at_least(what: str, value: dict[str, float], wanted: float) -> tuple[str, str, str, bool]:
        return what, f"at least {wanted:g}", show_ratio(value), value["median"] >= wanted

    if "train_speed" in found:
        for model, wanted in TARGETS.items():
            if model in found["train_speed"]:
                ratios = found["train_speed"][model]["ratio"]
                yield at_least(f"{model}: training / usual recipe", ratios["rival"], wanted)
                yield at_least(f"{model}: training / bare step", ratios["bare"], 0.95)
    if "precision_choice" in found:
        for model, entry in found["precision_choice"].items():
            if isinstance(entry, dict):
                yield at_least(f"{model}: {entry['chosen']} (chosen) / fp32", entry["ratio_to_fp32"], 1.0)
                yield at_least(f"{model}: {entry['chosen']} (chosen) / the faster one", entry["ratio_to_faster"], 0.95)
    if "resnet18, batch 32" in found.get("cam_speed", {}):
        ratios = found["cam_speed"]["resnet18, batch 32"]["ratio"]
        yield at_least("Grad-CAM, resnet18, batch 32 / grad-cam", ratios["grad-cam"], 8)
        yield at_least("Grad-CAM, resnet18, batch 32 / torchcam", ratios["torchcam"], 3)
        yield at_least("Grad-CAM, resnet18, batch 32 / bare forward pass", ratios["forward"], 0.85)
        if "family" in ratios:  # results of before have none
            yield at_least("Grad-CAM, resnet18, batch 32 / all seven methods together", ratios["family"], 1 / 1.3)
    if "cam_agreement" in found:
        lowest = min(found["cam_agreement"]["correlations"])
        yield "bf16 maps: lowest correlation with fp32", "at least 0.99", f"{lowest:.4f}", lowest >= 0.99
        furthest = found["cam_agreement"]["furthest"]
        yield "bf16 maps: peak moved by, cells", "at most 1", str(furthest), furthest <= 1
    if "test_speed" in found:
        yield at_least("test.py / usual recipe", found["test_speed"]["evaluation"]["ratio"], 3)
    if "cache_speed" in found:
        yield at_least("cache / PIL, per core", found["cache_speed"]["ratio"], 1.5)
    if "startup" in found:
        ratio = found["startup"]["resnet18"]["ratio"]
        yield "command to first step / bare", "at most 1.3", show_ratio(ratio), ratio["median"] <= 1.3
    if "scale" in found:
        for name, value in found["scale"]["slopes"].items():
            yield f"scale, {name}: log-log slope", "at most 1.1", f"{value:.2f}", value <= 1.1
    for name in NEEDED:
        if name not in found:
            yield name, "a result", "MISSING", False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="the end of the files' names (default: this machine's device)")
    arguments = parser.parse_args()
    arguments.device = arguments.device or device_slug(machine())
    files = {p.name.removesuffix(f"-{arguments.device}.json"): p for p in RESULTS.glob(f"*-{arguments.device}.json")}
    found = {name: json.loads(path.read_text())["measured"] for name, path in files.items()}
    print(f"\nwanted and measured ({arguments.device}); medians of paired ratios, with their range over the rounds")
    rows = list(lines(found))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True))
        print(cells, "" if row[3] else "NOT REACHED")


if __name__ == "__main__":
    main()
