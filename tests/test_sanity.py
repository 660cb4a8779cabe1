"""The sanity suite against methods and networks whose verdicts are known, and the random copies that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.cam import METHODS, Explainer, Explanation, Method
from localization.sanity import (
    CHECKS,
    Finding,
    run_sanity,
    verdict_of,
)
from pretrained_models import Architecture

SIZE = 32
ARCHITECTURE = Architecture("small", "fc", SIZE, (0.0, 0.0), (1.0, 1.0))


class _Spots(nn.Module):
    """As if trained: class 0 is a bright first channel, class 1 a bright second one; the other channels are noise."""

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
    return Explainer(_Spots().eval(), ARCHITECTURE, SIZE, layer_names=["conv2"])


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Four pictures of noise, with a spot in the first channel and another, elsewhere, in the second."""
    generator = torch.Generator().manual_seed(1)
    found = 0.3 * torch.randn(4, 2, SIZE, SIZE, generator=generator)
    for i, (y, x) in enumerate([(4, 4), (20, 6), (8, 20), (18, 18)]):
        found[i, 0, y : y + 9, x : x + 9] += 3
        found[i, 1, 28 - y : 34 - y, 30 - x : 36 - x] += 2
    return found


def _edges(explanation: Explanation) -> torch.Tensor:
    """An edge detector: what lies beside each pixel decides, and no weight."""
    grey = explanation.inputs.sum(1)
    return (grey - grey.roll(1, 2)).abs() + (grey - grey.roll(1, 1)).abs()


def _cam(explanation: Explanation) -> torch.Tensor:
    """CAM of Zhou 2016: the target's weights of the linear layer on the maps before the pooling."""
    model, x = explanation.model, explanation.inputs
    with torch.no_grad():
        maps = F.relu(model.conv2(F.relu(model.bn1(model.conv1(x)))))
        return F.relu(torch.einsum("nk,nkhw->nhw", model.fc.weight[explanation.targets], maps))


def _of_the_batch(explanation: Explanation) -> torch.Tensor:
    """Each picture's map less the batch's mean."""
    found = _cam(explanation)
    return F.relu(found - 0.1 * found.mean(0))


def _any_class(explanation: Explanation) -> torch.Tensor:
    """The class is asked for, and makes no difference."""
    return _cam(replace(explanation, wanted=torch.zeros_like(explanation.targets)))


def _noise(share: float) -> Callable[[Explanation], torch.Tensor]:
    def maps(explanation: Explanation) -> torch.Tensor:
        found = _cam(explanation)
        generator = torch.Generator().manual_seed(explanation.seed)
        return found + share * found.amax((1, 2), keepdim=True) * torch.rand(found.shape[1:], generator=generator)

    return maps


def _unseeded(explanation: Explanation) -> torch.Tensor:
    return _cam(explanation) * (1 + 0.05 * torch.rand(8, 8))


def _left(explanation: Explanation) -> torch.Tensor:
    """Hot on the left, whatever the picture."""
    return torch.linspace(1, 0, 8).expand(len(explanation.inputs), 8, 8)


def _only_trained(explanation: Explanation) -> torch.Tensor:
    """A constant under every model but the trained one, whose first bias is not 0."""
    return _cam(explanation) if explanation.model.fc.bias.any() else torch.ones(len(explanation.inputs), 8, 8)


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Method]]:
    added = {
        "cam": Method("CAM", _cam),
        "edges": Method("Edges", _edges, knows_class=False, known_failure="an edge detector"),
        "of_the_batch": Method("Of the batch", _of_the_batch),
        "any_class": Method("Any class", _any_class),
        "quiet": Method("Quiet", _noise(0.002)),
        "loud": Method("Loud", _noise(20)),
        "unseeded": Method("Unseeded", _unseeded),
        "left": Method("Left", _left),
        "only_trained": Method("Only trained", _only_trained),
        "empty": Method("Empty", lambda e: torch.zeros(len(e.inputs), 8, 8)),
    }
    for name, method in added.items():
        monkeypatch.setitem(METHODS, name, method)
    return added


def _findings(explainer: Explainer, pictures: torch.Tensor, method: str) -> dict[str, Finding]:
    found = run_sanity(explainer, pictures, torch.tensor([0, 1, 0, 1])[: len(pictures)], [method], seed=0)
    assert [finding.check for finding in found] == list(CHECKS)
    return {finding.check: finding for finding in found}


FAILS = {
    "cam": set(),
    "edges": {"cascade", "class"},
    "of_the_batch": {"batch"},
    "any_class": {"class"},
    "quiet": set(),
    "unseeded": {"batch", "seed"},
    "left": {"cascade", "flip", "class"},
    "only_trained": set(),
}


@pytest.mark.usefixtures("methods")
@pytest.mark.parametrize("method", FAILS)
def test_each_fault_fails_its_own_checks(explainer: Explainer, pictures: torch.Tensor, method: str) -> None:
    found = _findings(explainer, pictures, method)
    assert {check for check, finding in found.items() if finding.verdict == "fail"} == FAILS[method]
    assert {finding.verdict for finding in found.values()} <= {"pass", "fail"}
    assert verdict_of(list(found.values()), method) == ("fail" if FAILS[method] else "pass")
