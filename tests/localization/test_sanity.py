"""The sanity suite against methods and networks whose verdicts are known, and the random copies that it rests on."""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from localization.explainer import Explainer
from localization.methods.explanation import Explanation
from localization.methods.table import METHODS, Method
from localization.sanity.checks import (
    CHECKS,
    Finding,
    differences,
    has_ranks,
    on_common_grid,
    run_sanity,
    similarity,
    verdict_of,
)
from localization.sanity.randomise import STAGES, fully_randomised, randomised, stages
from localization.sanity.verdicts import format_sanity, write_sanity
from pretrained_models import Architecture, build_model

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


def _quiet(explanation: Explanation) -> torch.Tensor:
    """A little noise on the cells that are hot."""
    generator = torch.Generator().manual_seed(explanation.seed)
    return _cam(explanation) * (1 + 0.05 * torch.rand(8, 8, generator=generator))


def _loud(explanation: Explanation) -> torch.Tensor:
    """Next to nothing but noise."""
    generator = torch.Generator().manual_seed(explanation.seed)
    found = _cam(explanation)
    return found + 20 * found.amax((1, 2), keepdim=True) * torch.rand(8, 8, generator=generator)


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
        "quiet": Method("Quiet", _quiet),
        "loud": Method("Loud", _loud),
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
    "loud": {"cascade", "flip", "seed", "class"},
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


@pytest.mark.usefixtures("methods")
def test_the_notes_say_what_was_seen(explainer: Explainer, pictures: torch.Tensor) -> None:
    cam, edges = _findings(explainer, pictures, "cam"), _findings(explainer, pictures, "edges")
    assert cam["seed"].note == "draws no noise"
    assert cam["batch"].value < 1e-6
    assert cam["cascade"].n == 4
    assert cam["cascade"].low <= cam["cascade"].value <= cam["cascade"].high
    assert edges["class"].note == "knows no class"
    assert edges["cascade"].note == "known failure: an edge detector"
    shares, values = zip(*edges["cascade"].curve, strict=True)
    assert shares == (0, 0.25, 0.5, 0.75, 1)  # fc, conv2, bn1, conv1
    assert values == pytest.approx([1] * 5)
    assert edges["cascade"].area == pytest.approx(1)
    lost = _findings(explainer, pictures, "only_trained")["cascade"]
    assert (lost.verdict, lost.value) == ("pass", 0)
    assert lost.note == "no map from the random models in 12 of 12: similarity 0"


@pytest.mark.usefixtures("methods")
def test_without_two_maps_there_is_no_verdict(explainer: Explainer, pictures: torch.Tensor) -> None:
    empty, single = _findings(explainer, pictures, "empty"), _findings(explainer, pictures[:1], "cam")
    assert {finding.verdict for finding in (*empty.values(), *single.values())} == {"n/a"}
    assert all("0 of 4 pictures" in finding.note and "4 empty" in finding.note for finding in empty.values())
    assert np.isnan(empty["flip"].value)
    assert verdict_of(list(empty.values()), "empty") == "n/a"


@pytest.mark.usefixtures("methods")
def test_the_same_seed_gives_the_same_findings(explainer: Explainer, pictures: torch.Tensor) -> None:
    runs = [run_sanity(explainer, pictures, None, ["cam", "gradcam"], seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_costly_methods_see_less_of_the_cascade(
    explainer: Explainer, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(explanation: Explanation) -> torch.Tensor:
        explanation.predict(explanation.inputs.repeat(9, 1, 1, 1))
        return _cam(explanation)

    monkeypatch.setitem(METHODS, "costly", Method("Costly", costly))
    monkeypatch.setitem(METHODS, "cam", Method("CAM", _cam))
    found = run_sanity(explainer, pictures, None, ["cam", "costly"])
    curves = {finding.method: finding for finding in found if finding.check == "cascade"}
    assert [share for share, _ in curves["costly"].curve] == pytest.approx([0, 0.5, 1])
    assert "stages 2 and 4 of 4 alone" in curves["costly"].note
    assert curves["cam"].note == ""
    assert curves["costly"].curve[1] == curves["cam"].curve[2]  # under the same random model


@pytest.mark.usefixtures("methods")
def test_every_file_and_word_of_the_report(explainer: Explainer, pictures: torch.Tensor, tmp_path: Path) -> None:
    methods = ["cam", "edges", "empty"]
    found = run_sanity(explainer, pictures, None, methods)
    titles = {name: METHODS[name].title for name in methods}
    write_sanity(tmp_path, found, titles)
    with open(tmp_path / "sanity.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["check"]) for row in rows] == [(m, c) for m in methods for c in CHECKS]
    assert {row["verdict"] for row in rows if row["method"] == "empty"} == {"n/a"}
    first = found[0]
    assert float(rows[0]["value"]) == pytest.approx(first.value, abs=1e-5)
    assert float(rows[0]["area"]) == pytest.approx(first.area, abs=1e-5)
    assert cv2.imread(str(tmp_path / "sanity.png")).shape[1] == pytest.approx(1209, abs=2)
    heading, *lines = format_sanity(found, titles).splitlines()
    assert heading.split()[:2] == ["method", "verdict"]
    assert lines[0].startswith("CAM     pass")
    assert lines[1].startswith("Edges   FAIL     FAIL 1.00 [1.00, 1.00]")
    assert lines[1].endswith("FAIL knows no class   an edge detector")
    assert lines[2].split() == ["Empty", *["n/a"] * 6]


def test_similarity_is_scipy_s_and_a_lost_map_is_like_none() -> None:
    generator = np.random.default_rng(0)
    maps, others = generator.random((2, 6, 5, 7)).round(1)  # rounded: ties
    maps[0] += others[0]
    expected = [spearmanr(a, b).statistic for a, b in zip(maps.reshape(6, -1), others.reshape(6, -1), strict=True)]
    np.testing.assert_allclose(similarity(maps, others), expected, atol=1e-12)
    others[1], others[2], others[3, 0, 0], others[4] = 0, 3, np.nan, 3 * maps[4] + 1
    assert has_ranks(others).tolist() == [True, False, False, False, True, True]
    assert similarity(maps, others)[1:5] == pytest.approx([0, 0, 0, 1])
    assert similarity(others, maps)[1:5] == pytest.approx([0, 0, 0, 1])
    assert differences(np.array([[[1.0, 4.0]]] * 2), np.array([[[1.5, 4.0]], [[np.nan, 4.0]]])).tolist() == [
        0.125,
        np.inf,
    ]


def test_the_common_grid_averages_areas() -> None:
    fine = torch.arange(28.0).expand(1, 42, 28)
    found = on_common_grid(fine)
    assert found.shape == (1, 14, 14)
    np.testing.assert_allclose(found[0, 0], np.arange(28).reshape(14, 2).mean(1))
    assert on_common_grid(torch.rand(2, 7, 5)).shape == (2, 7, 5)


def test_stages_run_from_the_head_to_the_first_layer() -> None:
    model, architecture, _ = build_model("resnet18", 4)
    groups = stages(model, architecture, torch.randn(1, 3, 64, 64))
    own = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert groups[0] == ["fc"]
    assert groups[-1][-1] == "conv1"
    assert len(groups) == STAGES
    assert sorted(chain(*groups)) == sorted(own)
    assert {len(group) for group in groups[1:]} == {10}  # 20 convolutions and 20 normalisations
    order = list(chain(*groups))
    places = [order.index(f"layer{i}.0.conv1") for i in (4, 3, 2, 1)]
    assert places == sorted(places)


def _small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)
    with torch.no_grad():
        for parameter in model.parameters():  # the constructor's class token and head are zeros
            parameter.normal_()
    return model


VIT = Architecture("small_vit", "heads.head", 32, (0.0,) * 3, (1.0,) * 3)


def test_parameters_whose_module_is_never_called_have_their_place() -> None:
    order = list(chain(*stages(_small_vit(), VIT, torch.zeros(1, 3, 32, 32))))
    attention = "encoder.layers.encoder_layer_{}.self_attention"
    wanted = [
        "heads.head",
        "encoder.layers.encoder_layer_1.mlp.0",
        attention.format(1) + ".out_proj",  # its weights are read by its parent
        "encoder.layers.encoder_layer_0.mlp.0",
        attention.format(0),
        "encoder",  # the position embedding
        "conv_proj",
        "",  # the class token
    ]
    assert [name for name in order if name in wanted] == wanted


def _changed(model: nn.Module, other: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])}


@pytest.mark.parametrize("stage", [0, 1, 3, STAGES])
def test_a_random_copy_changes_its_stages_alone_and_leaves_the_model(stage: int) -> None:
    torch.manual_seed(0)
    model, architecture, _ = build_model("resnet18", 4)
    inputs = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "bn1.weight", "bn2.weight", "1.weight", "running_mean", "running_var")):
                tensor.add_(0.1 * torch.rand_like(tensor))  # else zeros and ones, that a shuffle leaves
    model.train()
    before = copy.deepcopy(model)
    with torch.inference_mode():
        fresh = randomised(model, architecture, inputs, stage)
        again, other = (randomised(model, architecture, inputs, stage, seed) for seed in (0, 1))
    assert not _changed(model, before)
    assert model.training
    assert not any(len(m._forward_pre_hooks) for m in (*model.modules(), *fresh.modules()))
    in_stages = {name for group in stages(model, architecture, inputs)[:stage] for name in group}
    assert _changed(model, fresh) == {n for n in model.state_dict() if n.rpartition(".")[0] in in_stages}
    assert not _changed(fresh, again)
    assert bool(_changed(fresh, other)) == (stage > 0)
    assert not fresh.training
    scores = fresh(inputs)
    assert torch.isfinite(scores).all()
    scores.sum().backward()  # the copy's weights are no inference tensors
    if stage > 1:
        less = randomised(model, architecture, inputs, 1)
        assert torch.equal(less.fc.weight, fresh.fc.weight)


def test_statistics_are_those_of_the_pictures() -> None:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(i, 8, 3), nn.BatchNorm2d(8, momentum=0.2), nn.ReLU()) for i in (2, 8, 8)]
    model = nn.Sequential(*chain(*blocks), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    architecture, inputs = replace(ARCHITECTURE, head="12"), 5 + 3 * torch.randn(8, 2, SIZE, SIZE)
    fresh = fully_randomised(model, architecture, inputs)
    seen = {}
    for name in ("1", "4", "7"):
        hook = lambda m, i, o, name=name: seen.__setitem__(name, (i[0], o.clone()))  # noqa: E731
        fresh.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        fresh(inputs)
    for name, (taken, given) in seen.items():
        module = fresh.get_submodule(name)
        torch.testing.assert_close(module.running_mean, taken.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(module.running_var, taken.var((0, 2, 3)), rtol=1e-2, atol=0)
        torch.testing.assert_close(given.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-2)
        assert module.momentum == 0.2
    assert len(seen) == 3
    single = fully_randomised(model, architecture, inputs[:1])  # one value a channel behind the pooling
    assert torch.isfinite(single(inputs)).all()


def test_a_random_network_without_normalisation_still_tells_pictures_apart() -> None:
    torch.manual_seed(0)
    layers = [layer for i in range(13) for layer in (nn.Conv2d(16 if i else 2, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    inputs = torch.randn(4, 2, 32, 32) + 2 * torch.randn(4, 2, 1, 1)
    fresh = fully_randomised(model, replace(ARCHITECTURE, head="28"), inputs)

    def variety(network: nn.Module) -> float:
        with torch.no_grad():
            scores = network(inputs)
        return float(scores.std(0).mean() / scores.abs().mean())

    assert variety(fresh) > 0.03
    assert variety(model) < 1e-3  # the modules' own initialisation, which is not used for that


def test_what_has_no_fan_in_is_shuffled() -> None:
    model = _small_vit()
    fresh = fully_randomised(model, VIT, torch.randn(2, 3, 32, 32))
    old, new = dict(model.named_parameters()), dict(fresh.named_parameters())
    shuffled = ["class_token", "encoder.pos_embedding", "encoder.ln.weight"]
    for name in shuffled:
        assert not torch.equal(old[name], new[name])
        assert torch.equal(old[name].flatten().sort()[0], new[name].flatten().sort()[0])
    assert all(not tensor.any() for name, tensor in new.items() if name.endswith("bias"))
    projection = new["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    assert float(projection.detach().std()) == pytest.approx(1 / 4, rel=0.1)  # 16 inputs
