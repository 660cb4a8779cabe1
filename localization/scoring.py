"""Scores of a map against masks: how much of it lies inside, and how much that is beyond chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

RESAMPLES = 2000


def map_status(maps: np.ndarray) -> list[str]:
    """`nan`, `empty` (no positive evidence anywhere) or `ok` for each map of (n, h, w)."""
    return ["nan" if not np.isfinite(m).all() else "ok" if m.max() > 0 else "empty" for m in maps]


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Maps (n, h, w) on the feature grid as (n, height, width) float32: bilinear, each cell's value at its centre."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, np.float32))[:, None]
    return F.interpolate(tensor, (height, width), mode="bilinear", align_corners=False)[:, 0].numpy()


def mask_scores(cam: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Scores of one map (h, w) ≥ 0 on the feature grid, with a positive sum, against one mask (height, width) bool.

    `energy`: share of the map's sum inside the mask, in [0, 1] (Wang 2020). `area`: the mask's share of the picture.
    `lift`: energy / area, 1 for a map that does not know of the mask, NaN for an empty mask. `hit`: 1 where the centre
    of the hottest cell lies inside (the pointing game, Zhang 2018), else 0; chance is `area`. The cell's centre, not
    the first pixel of the enlarged map's peak: at the border that is a plateau, which would count left unlike right.
    """
    large = enlarge(cam[None], *mask.shape)[0]
    energy, area = float(large[mask].sum(dtype=np.float64) / large.sum(dtype=np.float64)), float(mask.mean())
    cell = np.unravel_index(cam.argmax(), cam.shape)
    peak = tuple(int((c + 0.5) * size / cells) for c, size, cells in zip(cell, mask.shape, cam.shape, strict=True))
    return {
        "energy": energy,
        "area": area,
        "lift": energy / area if area else float("nan"),
        "hit": float(mask[peak]) if area else float("nan"),
    }


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of (n,) values and its 95 % interval: percentile bootstrap over patients, `RESAMPLES` resamples.

    Images of one patient are not independent, so patients are resampled, not images (Efron and Tibshirani 1993).
    NaN values are left out; without any, all three are NaN; with one group, the limits are NaN.
    """
    kept = ~np.isnan(values)
    values, groups = values[kept], np.asarray(groups)[kept]
    if not len(values):
        return (float("nan"),) * 3
    number = np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(number, weights=values), np.bincount(number).astype(np.float64)
    mean = float(values.mean())
    if len(sums) < 2:
        return mean, float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return mean, float(low), float(high)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per class: maps, empty maps, and lift and hit rate against lungs and lesion with intervals over patients.

    Over the maps with status `ok`. Of labelled pictures those count that are correctly classified and whose map
    explains that class; pictures without a label are summed up by the class explained, in parentheses. Rows need
    `group`.
    """
    chosen_by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not row["label"]:
            chosen_by.setdefault(f"({row['target']})", []).append(row)
        elif row["label"] == row["predicted"] == row["target"]:
            chosen_by.setdefault(row["label"], []).append(row)
    summary = []
    for label, chosen in sorted(chosen_by.items()):
        usable = [row for row in chosen if row["status"] == "ok"]
        line: dict[str, Any] = {"label": label, "maps": len(chosen), "empty": len(chosen) - len(usable)}
        patients = np.array([row["group"] for row in usable])
        for name in ("lung_lift", "lesion_lift", "lesion_hit", "lesion_area"):
            values = np.array([row[name] for row in usable], np.float64)
            line[name] = bootstrap_mean(values, patients)
        summary.append(line)
    return summary


def format_summary(summary: list[dict[str, Any]]) -> str:
    """The summary as a table for a terminal; empty text where no map has a mask."""
    import pandas as pd

    def interval(entry: tuple[float, float, float], form: str) -> str:
        mean, low, high = entry
        if np.isnan(mean):
            return "-"
        return f"{mean:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")

    if all(np.isnan(line[name][0]) for line in summary for name in ("lung_lift", "lesion_lift")):
        return ""
    table = pd.DataFrame(
        [
            {
                "label": line["label"],
                "maps": line["maps"],
                "no evidence": line["empty"],
                "lung lift": interval(line["lung_lift"], ".2f"),
                "lesion lift": interval(line["lesion_lift"], ".2f"),
                "peak in lesion": interval(line["lesion_hit"], ".0%"),
                "by chance": interval((line["lesion_area"][0], np.nan, np.nan), ".0%"),
            }
            for line in summary
        ]
    )
    return table.to_string(index=False)
