"""The sanity checks on methods and a network whose verdicts are known."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.explainer import Explainer
from localization.methods.explanation import Explanation
from localization.methods.table import METHODS, Method
from localization.sanity.checks import CHECKS, Finding, SanitySuite, verdict_of
from localization.sanity.verdicts import format_sanity, write_sanity
from pretrained_models import Architecture

SIZE = 32
ARCHITECTURE = Architecture(name="small", head="fc", size=SIZE, mean=(0.0, 0.0), std=(1.0, 1.0))


class _Spots(nn.Module):
    """A network as if trained: class 0 is a bright first channel, class 1 a bright second one, the rest noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 12, 5, stride=2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, 2)
        with torch.no_grad():
            self.conv1.weight.mul_(0.1)
            self.conv2.weight.mul_(0.1)
            for i in range(2):
                self.conv1.weight[i, i] += 0.2
                self.conv2.weight[i, i] += 0.2
            self.fc.weight.mul_(0.1)
            self.fc.weight[:, :2] += torch.tensor([[2.0, -2.0], [-2.0, 2.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    torch.manual_seed(0)
    return Explainer.from_architecture(_Spots().eval(), ARCHITECTURE, SIZE, "conv2")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Four images of noise, with a spot in the first channel and another, elsewhere, in the second."""
    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(4, 2, SIZE, SIZE, generator=generator)
    for i, (y, x) in enumerate([(4, 4), (20, 6), (8, 20), (18, 18)]):
        noise[i, 0, y : y + 9, x : x + 9] += 3
        noise[i, 1, 28 - y : 34 - y, 30 - x : 36 - x] += 2
    return noise


def _edges(explanation: Explanation) -> torch.Tensor:
    """An edge detector, which uses neighbouring pixels and no weights."""
    grey = explanation.inputs.sum(1)
    return (grey - grey.roll(1, 2)).abs() + (grey - grey.roll(1, 1)).abs()


def _cam(explanation: Explanation) -> torch.Tensor:
    """CAM of Zhou 2016: the target's weights of the linear layer on the maps before the pooling."""
    model, x = explanation.model, explanation.inputs
    with torch.no_grad():
        maps = F.relu(model.conv2(F.relu(model.bn1(model.conv1(x)))))
        return F.relu(torch.einsum("nk,nkhw->nhw", model.fc.weight[explanation.targets], maps))


def _of_the_batch(explanation: Explanation) -> torch.Tensor:
    """Each image's map minus a share of the batch's mean."""
    maps = _cam(explanation)
    return F.relu(maps - 0.1 * maps.mean(0))


def _any_class(explanation: Explanation) -> torch.Tensor:
    """A method that ignores the class although it takes one."""
    return _cam(replace(explanation, requested=torch.zeros_like(explanation.targets)))


def _quiet(explanation: Explanation) -> torch.Tensor:
    """A little noise on active cells."""
    generator = torch.Generator().manual_seed(explanation.settings.seed)
    return _cam(explanation) * (1 + 0.05 * torch.rand(8, 8, generator=generator))


def _loud(explanation: Explanation) -> torch.Tensor:
    """Almost pure noise."""
    generator = torch.Generator().manual_seed(explanation.settings.seed)
    maps = _cam(explanation)
    return maps + 20 * maps.amax((1, 2), keepdim=True) * torch.rand(8, 8, generator=generator)


def _unseeded(explanation: Explanation) -> torch.Tensor:
    return _cam(explanation) * (1 + 0.05 * torch.rand(8, 8))


def _left(explanation: Explanation) -> torch.Tensor:
    """High on the left for every image."""
    return torch.linspace(1, 0, 8).expand(len(explanation.inputs), 8, 8)


def _only_trained(explanation: Explanation) -> torch.Tensor:
    """A constant for every model but the trained one, whose biases are not 0."""
    return _cam(explanation) if explanation.model.fc.bias.any() else torch.ones(len(explanation.inputs), 8, 8)


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Method]]:
    added = {
        "cam": Method(title="CAM", function=_cam),
        "edges": Method(title="Edges", function=_edges, knows_class=False, known_failure="an edge detector"),
        "of_the_batch": Method(title="Of the batch", function=_of_the_batch),
        "any_class": Method(title="Any class", function=_any_class),
        "quiet": Method(title="Quiet", function=_quiet),
        "loud": Method(title="Loud", function=_loud),
        "unseeded": Method(title="Unseeded", function=_unseeded),
        "left": Method(title="Left", function=_left),
        "only_trained": Method(title="Only trained", function=_only_trained),
        "empty": Method(title="Empty", function=lambda e: torch.zeros(len(e.inputs), 8, 8)),
    }
    for name, method in added.items():
        monkeypatch.setitem(METHODS, name, method)
    return added


def _run(
    explainer: Explainer, images: torch.Tensor, targets: torch.Tensor | None, methods: list[str], seed: int = 0
) -> list[Finding]:
    return SanitySuite(explainer.explain(images, targets), explainer.architecture, methods, images, seed).run()


def _findings(explainer: Explainer, images: torch.Tensor, method: str) -> dict[str, Finding]:
    findings = _run(explainer, images, torch.tensor([0, 1, 0, 1])[: len(images)], [method], seed=0)
    assert [finding.check for finding in findings] == list(CHECKS)
    return {finding.check: finding for finding in findings}


FAILS = {
    "cam": set(),
    "edges": {"cascade", "class"},
    "of_the_batch": {"batch"},
    "any_class": {"class"},
    "quiet": set(),
    "loud": {"cascade", "flip", "seed", "class"},
    "unseeded": {"batch", "seed"},
    "left": {"cascade", "flip", "class"},
    "only_trained": set(),
}


@pytest.mark.usefixtures("methods")
@pytest.mark.parametrize("method", FAILS)
def test_each_fault_fails_the_checks_for_it(explainer: Explainer, images: torch.Tensor, method: str) -> None:
    findings = _findings(explainer, images, method)
    assert {check for check, finding in findings.items() if finding.verdict == "fail"} == FAILS[method]
    assert {finding.verdict for finding in findings.values()} <= {"pass", "fail"}
    assert verdict_of(list(findings.values()), method) == ("fail" if FAILS[method] else "pass")


@pytest.mark.usefixtures("methods")
def test_the_notes_explain_the_verdicts(explainer: Explainer, images: torch.Tensor) -> None:
    cam, edges = _findings(explainer, images, "cam"), _findings(explainer, images, "edges")
    assert cam["seed"].note == "draws no noise"
    assert cam["batch"].value < 1e-6
    assert cam["cascade"].n == 4
    assert cam["cascade"].low <= cam["cascade"].value <= cam["cascade"].high
    assert edges["class"].note == "class-agnostic"
    assert edges["cascade"].note == "known failure: an edge detector"
    shares, values = zip(*edges["cascade"].curve, strict=True)
    assert shares == (0, 0.25, 0.5, 0.75, 1)  # fc, conv2, bn1, conv1
    assert values == pytest.approx([1] * 5)
    assert edges["cascade"].area == pytest.approx(1)
    lost = _findings(explainer, images, "only_trained")["cascade"]
    assert (lost.verdict, lost.value) == ("pass", 0)
    assert lost.note == "no map from the random models in 12 of 12: similarity 0"


@pytest.mark.usefixtures("methods")
def test_fewer_than_two_maps_give_no_verdict(explainer: Explainer, images: torch.Tensor) -> None:
    empty, single = _findings(explainer, images, "empty"), _findings(explainer, images[:1], "cam")
    assert {finding.verdict for finding in (*empty.values(), *single.values())} == {"n/a"}
    assert all("0 of 4 images" in finding.note and "4 empty" in finding.note for finding in empty.values())
    assert np.isnan(empty["flip"].value)
    assert verdict_of(list(empty.values()), "empty") == "n/a"


@pytest.mark.usefixtures("methods")
def test_the_same_seed_gives_the_same_findings(explainer: Explainer, images: torch.Tensor) -> None:
    runs = [_run(explainer, images, None, ["cam", "gradcam"], seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_costly_methods_are_tried_on_fewer_random_models(
    explainer: Explainer, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(explanation: Explanation) -> torch.Tensor:
        explanation.predict(explanation.inputs.repeat(9, 1, 1, 1))
        return _cam(explanation)

    monkeypatch.setitem(METHODS, "costly", Method(title="Costly", function=costly))
    monkeypatch.setitem(METHODS, "cam", Method(title="CAM", function=_cam))
    findings = _run(explainer, images, None, ["cam", "costly"])
    curves = {finding.method: finding for finding in findings if finding.check == "cascade"}
    assert [share for share, _ in curves["costly"].curve] == pytest.approx([0, 0.5, 1])
    assert "only stages 2 and 4 of 4" in curves["costly"].note
    assert curves["cam"].note == ""
    assert curves["costly"].curve[1] == curves["cam"].curve[2]  # under the same random model


@pytest.mark.usefixtures("methods")
def test_the_table_and_the_files(explainer: Explainer, images: torch.Tensor, tmp_path: Path) -> None:
    methods = ["cam", "edges", "empty"]
    findings = _run(explainer, images, None, methods)
    write_sanity(tmp_path, findings)
    with open(tmp_path / "sanity.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["check"]) for row in rows] == [(m, c) for m in methods for c in CHECKS]
    assert {row["verdict"] for row in rows if row["method"] == "empty"} == {"n/a"}
    first = findings[0]
    assert float(rows[0]["value"]) == pytest.approx(first.value, abs=1e-5)
    assert float(rows[0]["area"]) == pytest.approx(first.area, abs=1e-5)
    assert cv2.imread(str(tmp_path / "sanity.png")).shape[1] == pytest.approx(1209, abs=2)
    heading, *lines = format_sanity(findings).splitlines()
    assert heading.split()[:2] == ["method", "verdict"]
    assert lines[0].startswith("CAM     pass")
    assert lines[1].startswith("Edges   FAIL     FAIL 1.00 [1.00, 1.00]")
    assert lines[1].endswith("FAIL class-agnostic   an edge detector")
    assert lines[2].split() == ["Empty", *["n/a"] * 6]
