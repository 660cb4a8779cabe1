"""The precision is measured once per model and device."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("content", ["[1]", "{", '{"net": null}', '{"KEY": {"fp32": 1.0}}'])
def test_damaged_measurements_are_repeated_and_others_kept(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape, device, file = torch.nn.Linear(1, 1), (2, 3, 8, 8), torch.device("cpu"), tmp_path / "precision.json"
    monkeypatch.setattr(precision, "measure_precisions", lambda *_: {"fp32": 2.0, "bf16": 1.0})
    choose_precision(model, "net", shape, device, tmp_path)
    (key,) = json.loads(file.read_text())
    file.write_text(content.replace("KEY", key))

    def measure(*_: object) -> dict[str, float]:
        file.write_text('{"another": {"fp32": 1.0, "bf16": 2.0}}')  # by a process that measures meanwhile
        return {"fp32": 2.0, "bf16": 1.0}

    monkeypatch.setattr(precision, "measure_precisions", measure)
    assert choose_precision(model, "net", shape, device, tmp_path) == "bf16"
    assert set(json.loads(file.read_text())) == {key, "another"}
