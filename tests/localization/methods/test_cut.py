"""A pass through a cut model: closed forms, scores, and a model that is left unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.methods.cut import cut_pass
from localization.methods.gradients import grad_cam
from localization.methods.layers import Layer
from tests.helpers.networks import SIZE, build_network
from utils import UserError


def _features(model: nn.Module, layer: Layer, inputs: Any, targets: Any = None, precision: str = "fp32") -> Any:
    return cut_pass(model, [layer], inputs, targets, precision).features[0]


def _grad_cam(*arguments: Any) -> torch.Tensor:
    features = _features(*arguments)
    return grad_cam(features.activations, features.gradients)


class _Linear(nn.Module):
    """Convolution, ReLU, global average pooling, linear: Grad-CAM is then CAM (Zhou 2016) divided by the map's area."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(inplace=in_place))
        self.fc = nn.Linear(8, 5)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x)
        self.seen.append(features.detach().clone())
        return self.fc(F.relu(features, inplace=True).mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
def test_closed_form(in_place: bool) -> None:
    torch.manual_seed(0)
    model = _Linear(in_place)
    inputs = torch.randn(4, 3, 33, 33)
    cut = _features(model, Layer("features"), inputs, torch.arange(4))
    maps = model.seen[-1]
    expected = F.relu(torch.einsum("nk,nkhw->nhw", model.fc.weight[:4], maps)) / maps[0, 0].numel()
    # The ReLU that follows in place has derivative 0 where the map is 0: only a cut behind it sees the whole gradient.
    plain = _grad_cam(model, Layer("features"), inputs, torch.arange(4))
    rectified = _grad_cam(model, Layer("features", relu_after=True), inputs, torch.arange(4))
    torch.testing.assert_close(rectified, expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    torch.testing.assert_close(cut.activations, maps)


def test_the_predicted_class_is_the_default_and_scores_are_the_model_s() -> None:
    model = build_network("densenet121", "moved")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    cut = cut_pass(model, [Layer("features", relu_after=True)], inputs)
    with torch.no_grad():
        scores = model(inputs)
    torch.testing.assert_close(cut.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.targets, scores.argmax(1))


def test_maps_do_not_depend_on_the_batch() -> None:
    model, layer = build_network("resnet18", "moved"), Layer("layer4")
    inputs = torch.randn(5, 3, SIZE, SIZE)
    whole = _grad_cam(model, layer, inputs, torch.tensor([0, 1, 2, 3, 0]))
    single = torch.cat([_grad_cam(model, layer, inputs[i : i + 1], torch.tensor([i % 4])) for i in range(5)])
    torch.testing.assert_close(whole, single, atol=1e-4 * float(whole.max()), rtol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_unchanged(context: type) -> None:
    model, layer = build_network("resnet18", "random"), Layer("layer4")
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with context():
        inputs = torch.randn(2, 3, SIZE, SIZE)
        for _ in range(3):
            cut = cut_pass(model, [layer], inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert model.training
    assert not model.layer1.training
    assert not model.conv1.weight.requires_grad
    assert model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not cut.features[0].activations.requires_grad
    assert cut.features[0].gradients.abs().max() > 0


def test_the_model_is_left_unchanged_after_an_error() -> None:
    model = build_network("resnet18", "random").train()
    with pytest.raises(UserError, match="not a feature map"):
        cut_pass(model, [Layer("fc")], torch.randn(2, 3, SIZE, SIZE))
    assert model.training
    assert model.fc.weight.requires_grad
    assert not any(len(m._forward_hooks) for m in model.modules())


def test_bf16_gives_nearly_the_same_map() -> None:
    model, layer = build_network("resnet18", "random"), Layer("layer4")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    full, half = (_grad_cam(model, layer, inputs, torch.tensor([0, 1]), p) for p in ("fp32", "bf16"))
    for a, b in zip(full, half, strict=True):
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.99


def test_several_layers_in_one_pass_have_each_layer_s_own_gradients() -> None:
    model = build_network("resnet18", "moved")
    inputs, targets = torch.randn(2, 3, SIZE, SIZE), torch.tensor([1, 2])
    together = cut_pass(model, [Layer("layer3"), Layer("layer4")], inputs, targets).features
    for features, name in zip(together, ("layer3", "layer4"), strict=True):
        alone = cut_pass(model, [Layer(name)], inputs, targets).features[0]
        torch.testing.assert_close(features.activations, alone.activations, rtol=1e-4, atol=1e-5)
        scale = float(alone.gradients.abs().max())
        torch.testing.assert_close(features.gradients / scale, alone.gradients / scale, rtol=1e-3, atol=1e-5)


def test_two_models_at_once() -> None:
    """In two interleaved threads each model has its own maps."""
    from concurrent.futures import ThreadPoolExecutor

    models = [build_network(name, "moved") for name in ("resnet18", "squeezenet1_1")]
    layers = [Layer("layer4"), Layer("features")]
    inputs, targets = torch.randn(1, 3, SIZE, SIZE), torch.tensor([1])
    alone = [_grad_cam(m, layer, inputs, targets) for m, layer in zip(models, layers, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_grad_cam, models[i % 2], layers[i % 2], inputs, targets) for i in range(8)]
        for i, job in enumerate(jobs):
            torch.testing.assert_close(job.result(), alone[i % 2], rtol=1e-4, atol=1e-5)
