"""The precision is measured once per model and device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import precision
from training.precision import CANDIDATES, choose_precision


def test_precision_is_measured_once_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    device = torch.device("cpu")
    seconds = precision.measure_precisions(model, (32, 3, 32, 32), device)
    assert set(seconds) == set(CANDIDATES)
    assert all(s > 0 for s in seconds.values())
    for fastest in CANDIDATES:
        monkeypatch.setattr(
            precision, "measure_precisions", lambda *_, f=fastest: {p: 1.0 + (p != f) for p in CANDIDATES}
        )
        assert choose_precision(model, f"net-{fastest}", (32, 3, 32, 32), device, tmp_path) == fastest
    monkeypatch.setattr(precision, "measure_precisions", lambda *_: pytest.fail("measured again"))
    assert choose_precision(model, "net-bf16", (32, 3, 32, 32), device, tmp_path) == "bf16"
