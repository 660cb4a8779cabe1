"""The methods of activations and gradients against peers, closed forms and the papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.methods.cut import cut_pass
from localization.methods.gradients import (
    eigen_cam,
    eigen_grad_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    mean_of_layers,
    x_grad_cam,
)
from localization.methods.layers import Layer, find_layers
from tests.helpers.networks import SIZE, architecture_of, bright_quarters, build_network

LARGE = ("vgg16", "vit_b_16", "swin_t", "convnext_tiny")
MODELS = ("resnet18", "densenet121", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE))
FAMILY = (grad_cam, grad_cam_plus_plus, hires_cam, x_grad_cam, layer_cam, eigen_cam, eigen_grad_cam)


class _DenseNetWithoutInPlace(nn.Module):
    """torchvision's DenseNet whose last ReLU is a module and not in place: what the peers keep stays unchanged."""

    def __init__(self, densenet: nn.Module) -> None:
        super().__init__()
        self.features, self.last_relu, self.classifier = densenet.features, nn.ReLU(), densenet.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.last_relu(self.features(x)), 1).flatten(1))


def _peer_reshape(name: str) -> Any:
    """Return the reshaping that users of the peers write for their transformers."""
    if name == "vit_b_16":
        side = SIZE // 16
        return lambda t: t[:, 1:].reshape(len(t), side, side, -1).permute(0, 3, 1, 2)
    return (lambda t: t.permute(0, 3, 1, 2)) if name == "swin_t" else None


def _grad_cam_package(kind: str, model: nn.Module, layer: nn.Module, reshape: Any, inputs: Any, targets: Any) -> Any:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, kind)(model, [layer], reshape_transform=reshape) as cam:
        output = cam.activations_and_grads(inputs)
        sum(ClassifierOutputTarget(int(t))(o) for t, o in zip(targets, output, strict=True)).backward()
        activations = cam.activations_and_grads.activations[0].cpu().numpy()
        gradients = cam.activations_and_grads.gradients[0].cpu().numpy()
        maps = cam.get_cam_image(inputs, layer, targets, activations, gradients, eigen_smooth=False)
    model.zero_grad()
    return np.maximum(maps, 0)


def _torchcam(kind: str, model: nn.Module, layer: nn.Module, reshape: Any, inputs: Any, targets: Any) -> Any:
    from torchcam import methods

    with getattr(methods, kind)(model, layer, reshape_transform=reshape) as extractor:
        (maps,) = extractor(targets.tolist(), model(inputs), normalized=False)
    model.zero_grad()
    return maps.detach().clamp_min(0).numpy()


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_grad_cam_and_torchcam(name: str, weights: str) -> None:
    model = build_network(name, weights)
    inputs = bright_quarters(torch.tensor([0, 3]))
    (layer,) = find_layers(model, architecture_of(name, model), SIZE)
    # the class with the most evidence in each image: a random network has no evidence for some classes
    peaks = [_grad_cam(model, layer, inputs, torch.tensor([c, c])).amax((1, 2)) for c in range(4)]
    targets = torch.stack(peaks).argmax(0)
    _compare(name, model, layer, inputs, targets, {grad_cam: "GradCAM", layer_cam: "LayerCAM"})
    if name in ("vit_b_16", "swin_t"):  # XGrad-CAM divides by sums of normalised tokens near 0: not in float32
        model, inputs = model.double(), inputs.double()
    _compare(name, model, layer, inputs, targets, {x_grad_cam: "XGradCAM"})


def _compare(
    name: str, model: nn.Module, layer: Layer, inputs: torch.Tensor, targets: torch.Tensor, kinds: dict[Any, str]
) -> None:
    features = _features(model, layer, inputs, targets)
    peer_model = _DenseNetWithoutInPlace(model) if name == "densenet121" else model
    peer_layer = peer_model.last_relu if name == "densenet121" else model.get_submodule(layer.name)
    for function, kind in kinds.items():
        ours = function(features.activations, features.gradients).numpy()
        for peer in (_grad_cam_package, _torchcam):
            expected = peer(kind, peer_model, peer_layer, _peer_reshape(name), inputs, targets)
            assert ours.shape == expected.shape
            assert expected.max() > 0
            assert np.abs(ours - expected).max() <= 1e-4 * expected.max(), (kind, peer.__name__)


@pytest.mark.parametrize("shape", [(8, 3, 4), (40, 7, 7), (5, 9, 8), (64, 1, 6)])
def test_eigen_cam_is_the_package_s_up_to_sign(shape: tuple[int, int, int]) -> None:
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    values = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2)).relu() + 0.3 * torch.randn(3, *shape)
    weights = torch.randn(3, *shape)
    for ours, product in ((eigen_cam(values, weights), values), (eigen_grad_cam(values, weights), values * weights)):
        projections = get_2d_projection(product.numpy())
        total = product.sum(1).numpy()
        for one, other, mean in zip(ours.numpy(), projections, total, strict=True):
            sign = np.sign((other * (mean - mean.mean())).sum())  # ours is high where the sum over channels is
            assert np.abs(one - np.maximum(sign * other, 0)).max() <= 1e-4 * np.abs(other).max()


def test_eigen_cam_of_crowded_and_of_no_eigenvalues() -> None:
    """Without a dominant direction the full decomposition is used; if nothing varies, the map is empty."""
    crowded = torch.linalg.qr(torch.randn(49, 49, dtype=torch.float64))[0].float().view(1, 49, 7, 7)
    assert torch.isfinite(eigen_cam(crowded, crowded)).all()
    assert eigen_cam(torch.ones(2, 30, 7, 7), torch.ones(2, 30, 7, 7)).abs().max() < 1e-5


class _Small(nn.Module):
    """One convolution, ReLU, and a score that is not linear in the maps: second and third derivatives matter."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 5, stride=5), nn.ReLU())
        self.fc = nn.Linear(4 * 9, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).flatten(1))


def test_grad_cam_plus_plus_is_the_paper_s() -> None:
    """Eq. 10 of Chattopadhay 2018 with autograd's second and third derivatives of Y = exp(S), cell by cell."""
    torch.manual_seed(3)
    model = _Small().double().eval()
    inputs = torch.randn(1, 3, 15, 15, dtype=torch.float64)
    maps = model.features(inputs).detach().requires_grad_()
    score = model.fc(maps.flatten(1))[0, 1].exp()
    (first,) = torch.autograd.grad(score, maps, create_graph=True)
    second, third = torch.zeros_like(maps), torch.zeros_like(maps)
    for index in np.ndindex(*maps.shape):
        row = torch.autograd.grad(first[index], maps, create_graph=True)[0][index]
        second[index] = row.detach()
        third[index] = torch.autograd.grad(row, maps, retain_graph=True)[0][index]
    alpha = second / (2 * second + maps.sum((2, 3), keepdim=True) * third)
    weights = (alpha * F.relu(first)).sum((2, 3), keepdim=True)
    expected = F.relu((weights * maps).sum(1)).detach()
    cut = cut_pass(model.float(), [Layer("features")], inputs.float(), torch.tensor([1]))
    ours = grad_cam_plus_plus(cut.features[0].activations, cut.features[0].gradients) * cut.scores[0, 1].exp()
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-6)


def test_hires_cam_sums_to_the_score_of_a_linear_head() -> None:
    """Draelos and Carin 2020: with a linear head Σ g ⊙ A is the score without its bias, cell by cell."""
    torch.manual_seed(4)
    model = _Small().eval()
    cut = cut_pass(model, [Layer("features")], torch.randn(5, 3, 15, 15))
    features = cut.features[0]
    bias = model.fc.bias.detach()[cut.targets]
    total = (features.activations * features.gradients).sum((1, 2, 3))
    torch.testing.assert_close(total, cut.scores.gather(1, cut.targets[:, None])[:, 0] - bias, rtol=1e-4, atol=1e-5)
    expected = F.relu((features.activations * features.gradients).sum(1))
    torch.testing.assert_close(hires_cam(features.activations, features.gradients), expected)


def test_a_channel_whose_activations_cancel_gives_xgradcam_no_weight() -> None:
    activations = torch.tensor([[[[1.0, -1.0]], [[2.0, 2.0]]]])
    gradients = torch.ones_like(activations)
    torch.testing.assert_close(x_grad_cam(activations, gradients), torch.full((1, 1, 2), 2.0))


def _features(model: nn.Module, layer: Layer, inputs: Any, targets: Any = None, precision: str = "fp32") -> Any:
    return cut_pass(model, [layer], inputs, targets, precision).features[0]


def _grad_cam(*arguments: Any) -> torch.Tensor:
    features = _features(*arguments)
    return grad_cam(features.activations, features.gradients)


@pytest.mark.parametrize("function", [grad_cam, grad_cam_plus_plus, hires_cam, x_grad_cam, layer_cam, eigen_grad_cam])
def test_negative_evidence_alone_gives_an_empty_map(function: Any) -> None:
    assert not function(torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3)).any()


def test_layers_are_averaged_at_their_own_scales() -> None:
    small, large = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[300.0, 0.0, 0.0, 0.0]]])
    assert mean_of_layers([small]) is small
    torch.testing.assert_close(mean_of_layers([small, large]), torch.tensor([[[0.5, 0.125, 0.375, 0.5]]]))
    torch.testing.assert_close(mean_of_layers([torch.zeros(1, 1, 4), large]), large / 600)
