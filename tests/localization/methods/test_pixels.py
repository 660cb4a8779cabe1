"""Integrated gradients, SmoothGrad, guided Grad-CAM: closed forms, captum and grad-cam, and models without ReLUs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from localization.methods import pixels, table
from localization.methods.explanation import Explanation, Settings
from localization.methods.layers import Layer
from localization.methods.pixels import (
    attributions,
    guided_grad_cam,
    guided_gradients,
    integrated_gradients,
    smooth_grad,
    why_not,
)
from pretrained_models import Architecture, build_model

SIDE, CLASSES = 32, 3
METHODS = (integrated_gradients, smooth_grad, guided_grad_cam)
TARGETS = torch.tensor([2, 0, 1])
BLACK = torch.tensor([-2.0, -1.9, -1.8])


class _Small(nn.Sequential):
    """Two convolutions, each with `activation`, global average pooling, a linear layer; the target layer is `3`."""

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        convolutions = nn.Conv2d(3, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 3, 2, padding=1)
        layers = [layer for convolution in convolutions for layer in (convolution, activation())]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


class _Function(nn.Module):
    """The scores as a function of the images."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def _model(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    return _Small(activation).eval()


def _explain(model: nn.Module, **settings: Any) -> Explanation:
    inputs = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Explanation(
        model=model,
        layers=[Layer("3")] if isinstance(model, _Small) else [],
        inputs=inputs,
        black=BLACK,
        requested=TARGETS,
        settings=Settings(**({"steps": 8, "samples": 3, "batch": 5} | settings)),
    )


def _weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def _change(explanation: Explanation) -> torch.Tensor:
    """score(x) − score(black) of each image."""
    black = BLACK[:, None, None].expand_as(explanation.inputs)
    with torch.no_grad():
        change = explanation.model(explanation.inputs) - explanation.model(black)
    return change.gather(1, TARGETS[:, None])[:, 0]


def test_attributions_of_a_quadratic_score() -> None:
    """For the score Σ a x² they are a (x² − black²); the integrand is linear, so that one node is enough."""
    a = _weights(CLASSES, 3, SIDE, SIDE)
    explanation = _explain(_Function(lambda x: torch.einsum("kchw,nchw->nk", a, x.square())), steps=1)
    expected = a[TARGETS] * (explanation.inputs.square() - BLACK[:, None, None].square())
    torch.testing.assert_close(attributions(explanation), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(integrated_gradients(explanation), F.relu(expected.sum(1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("activation", "nearness"), [(nn.ReLU, 0.02), (nn.Tanh, 1e-3)])
def test_attributions_equal_captum_s(activation: Callable[[], nn.Module], nearness: float) -> None:
    from captum.attr import IntegratedGradients

    explanation = _explain(_model(activation), steps=32)
    ours = attributions(explanation)

    def integrated(method: str, steps: int) -> torch.Tensor:
        arguments = {"target": TARGETS, "method": method, "n_steps": steps, "internal_batch_size": 48}
        baselines = BLACK[:, None, None].expand_as(explanation.inputs)
        return IntegratedGradients(explanation.model).attribute(explanation.inputs, baselines, **arguments)

    assert (_change(explanation) - ours.sum((1, 2, 3))).abs().le(0.01 * _change(explanation).abs()).all()
    torch.testing.assert_close(
        ours, integrated("riemann_middle", 32).float(), rtol=1e-3, atol=1e-4 * float(ours.abs().max())
    )
    integral = integrated("gausslegendre", 200).float()
    assert (ours - integral).norm() <= nearness * integral.norm()


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121"])
def test_completeness_in_deep_networks(name: str) -> None:
    """With statistics as after training and a score that fluctuates along the path, they stay within 1 %."""
    torch.manual_seed(0)
    model = _vgg() if name == "vgg11" else build_model(name, 4)[0].eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.05, 0.5)
    explanation = _explain(model, steps=12, batch=12)
    change, ours = _change(explanation), attributions(explanation).double().sum((1, 2, 3))
    assert (ours - change).abs().le(0.01 * change.abs()).all()


def _vgg() -> nn.Module:
    """VGG-11 without its large linear layers; its ReLUs work in place."""
    return nn.Sequential(make_layers(cfgs["A"], batch_norm=True), nn.Flatten(), nn.Linear(512, 4)).eval()


def _wavy() -> nn.Module:
    """Return a score that rises and falls ten times on the path from black, too often for a few nodes."""
    weights = 30 * _weights(8, 3, SIDE, SIDE) / SIDE
    return _Function(lambda x: torch.einsum("jchw,nchw->nj", weights, x).sin().cumsum(1)[:, [1, 4, 7]])


def test_nodes_are_tripled_and_then_reweighted_until_complete() -> None:
    """The weights are the smallest change of equal ones under two conditions, solved here as linear equations."""
    explanation = _explain(_wavy(), steps=8)
    nodes = (np.arange(24) + 0.5) / 24
    black = BLACK[:, None, None].expand_as(explanation.inputs[0])
    ours, change = attributions(explanation), _change(explanation)
    for index, target in enumerate(TARGETS):
        x = explanation.inputs[index]
        points = (black + torch.from_numpy(nodes)[:, None, None, None] * (x - black)).float()
        parts = [explanation.score_gradients(part, target.expand(len(part))) for part in points.split(5)]
        gradients = torch.cat(parts).double() * (x - black)
        slopes = gradients.sum((1, 2, 3)).numpy()
        assert abs(slopes.mean() / float(change[index]) - 1) > 0.01, "the nodes miss nothing: choose a wavier score"
        conditions = np.stack([np.ones(24), slopes])
        equal = np.full(24, 1 / 24)
        missing = np.array([1, float(change[index])]) - conditions @ equal
        weights = equal + np.linalg.pinv(conditions) @ missing
        assert (weights > 0).all(), "a weight would be negative: choose a less wavy score"
        expected = torch.einsum("s,schw->chw", torch.from_numpy(weights), gradients).float()
        torch.testing.assert_close(ours[index], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(ours.sum((1, 2, 3)), change, rtol=1e-3, atol=1e-4)


def test_no_node_gets_a_negative_weight() -> None:
    """If no weights can give the change, the node with the lowest slope has weight 0 and no less."""
    explanation = _explain(_wavy(), steps=8)
    black, x = BLACK[:, None, None].expand(3, SIDE, SIDE), explanation.inputs[0]
    path = pixels._Path(explanation, black, x, TARGETS[0])
    path.walk((torch.arange(8) + 0.5) / 8)
    offset = path.slopes - path.slopes.mean()
    mean_of_products = (path.slopes * (1 + offset / offset.abs().max())).mean()
    total = path.completed(torch.tensor(1e9)).double().sum()
    torch.testing.assert_close(total, mean_of_products, rtol=1e-4, atol=1e-4)
    level = pixels._Path(_explain(_Function(lambda x: x.mean((2, 3)))), black, x, TARGETS[0])  # one slope everywhere
    level.walk(torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(level.completed(2 * level.slopes.mean()), level.mean, rtol=1e-4, atol=1e-4)


def test_no_more_nodes_than_needed() -> None:
    """Images that are complete at once cost `steps` gradients, the others three times as many."""
    spent = []
    for model in (_model(nn.Tanh), _wavy()):
        explanation = _explain(model, steps=8)
        with mock.patch.object(
            Explanation, "score_gradients", autospec=True, side_effect=Explanation.score_gradients
        ) as c:
            attributions(explanation)
        spent.append(sorted({float(x.sum()): None for call in c.call_args_list for x in call.args[1]}))
    assert [len(points) for points in spent] == [3 * 8, 3 * 24]


def test_smooth_grad_of_a_linear_score_is_its_weights() -> None:
    weights = _weights(CLASSES, 3, SIDE, SIDE)
    explanation = _explain(_Function(lambda x: torch.einsum("kchw,nchw->nk", weights, x)))
    torch.testing.assert_close(smooth_grad(explanation), weights[TARGETS].sum(1).abs(), rtol=1e-5, atol=1e-5)


def test_smooth_grad_equals_captum_s_noise_tunnel_with_the_same_noise() -> None:
    from captum.attr import NoiseTunnel, Saliency

    explanation = _explain(_model(nn.Tanh), samples=7)
    explanation.inputs[1] *= 3  # each image has its own range
    ours = smooth_grad(explanation)
    planes = torch.cat([pixels._noise(0, sample, explanation.inputs) for sample in range(7)])
    for index, (x, target) in enumerate(zip(explanation.inputs, TARGETS, strict=True)):
        with mock.patch("torch.normal", lambda _, deviations: deviations * planes):
            expected = NoiseTunnel(Saliency(explanation.model)).attribute(
                x[None], nt_samples=7, stdevs=0.15 * float(x.max() - x.min()), target=int(target), abs=False
            )
        torch.testing.assert_close(ours[index], expected[0].sum(0).abs(), rtol=1e-4, atol=1e-5)


def test_the_noise_is_normal_and_depends_on_seed_and_sample() -> None:
    inputs = torch.zeros(2, 3, 128, 128)
    noise = torch.cat([pixels._noise(seed, sample, inputs) for seed in range(3) for sample in range(3)]).flatten(1)
    assert torch.corrcoef(noise).sub(torch.eye(9)).abs().max() < 0.04
    assert noise.mean(1).abs().max() < 0.04
    assert noise.std(1).sub(1).abs().max() < 0.04
    assert torch.equal(pixels._noise(2, 1, inputs[:1])[0, 0].flatten(), noise[7])


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
def test_guided_gradients_equal_captum_s() -> None:
    from captum.attr import GuidedBackprop

    explanation = _explain(_model())
    ours = guided_gradients(explanation)
    expected = GuidedBackprop(_model()).attribute(explanation.inputs.clone().requires_grad_(), target=TARGETS)
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-4, atol=1e-6)
    plain = explanation.score_gradients(explanation.inputs, TARGETS)
    assert not torch.allclose(plain, ours, rtol=0.1)


def test_guided_gradients_equal_the_grad_cam_package_s() -> None:
    """resnet18 uses each of its ReLU modules twice, in place."""
    from pytorch_grad_cam import GuidedBackpropReLUModel

    torch.manual_seed(0)
    explanation = _explain(build_model("resnet18", 4)[0].eval())
    ours = guided_gradients(explanation)
    rival = GuidedBackpropReLUModel(copy.deepcopy(explanation.model))
    for x, target, guided in zip(explanation.inputs, TARGETS, ours, strict=True):
        expected = torch.from_numpy(rival(x[None].clone(), int(target))).permute(2, 0, 1)
        torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


RECTIFIERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F.relu": F.relu,
    "F.relu, in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_, result unused": lambda x: (x.relu_(), x)[1],
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU, in place": nn.ReLU(inplace=True),
}
CLIPPED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F.relu6": F.relu6,
    "F.relu6, in place, changed afterwards": lambda x: F.relu6(x, inplace=True).div_(1.0),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6, in place": nn.ReLU6(inplace=True),
    "nn.Hardtanh(0, 6)": nn.Hardtanh(0, 6),
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, min_val=0.0, max_val=6.0),
}


@pytest.mark.parametrize("name", [*RECTIFIERS, *CLIPPED])
def test_every_rectifier_is_guided(name: str) -> None:
    """Σ w ReLU(x): w where x > 0 (and < 6) and w > 0, else 0; the score itself does not change."""
    w = _weights(CLASSES, 3, SIDE, SIDE)
    rectify = (RECTIFIERS | CLIPPED)[name]
    explanation = _explain(_Function(lambda x: torch.einsum("kchw,nchw->nk", w, rectify(x.clone()))))
    explanation.inputs *= 5
    x = explanation.inputs
    open_ = (x > 0) & (x < (6 if name in CLIPPED else torch.inf))
    assert torch.equal(guided_gradients(explanation), torch.where(open_, F.relu(w[TARGETS]), 0.0))
    with pixels._Guided(), torch.no_grad():
        guided = explanation.model(x)
    torch.testing.assert_close(guided, explanation.model(x))


def test_other_clamps_keep_their_gradients() -> None:
    """Such as a hard tanh from −1 and a variance clamped at 0 (timm's normalisations)."""
    w = -_weights(CLASSES, 3, SIDE, SIDE).abs()
    explanation = _explain(_Function(lambda x: torch.einsum("kchw,nchw->nk", w, F.hardtanh(x) + x.clamp(0))))
    x = explanation.inputs
    expected = w[TARGETS] * ((x.abs() < 1).float() + (x > 0).float())
    torch.testing.assert_close(guided_gradients(explanation), expected)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_no_rectifier_of_a_real_network_is_missed(name: str) -> None:
    model = build_model(name, 4)[0].eval()
    leaf = torch.randn(1, 3, SIDE, SIDE, requires_grad=True)
    plain = _nodes(model(leaf))
    with pixels._Guided():
        guided = _nodes(model(leaf))
    rectifiers = sum(plain.get(n, 0) for n in ("ReluBackward0", "HardtanhBackward0"))
    assert rectifiers > 10
    assert guided["_RectifyBackward"] == rectifiers
    assert not any("relu" in n.lower() or "hardtanh" in n.lower() for n in guided)


def _nodes(output: torch.Tensor) -> dict[str, int]:
    """Count the nodes of each kind in an output's graph."""
    counts: dict[str, int] = {}
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        counts[type(node).__name__] = counts.get(type(node).__name__, 0) + 1
        todo.extend(following for following, _ in node.next_functions)
    return counts


def test_guided_grad_cam_is_the_product() -> None:
    explanation = _explain(_model())
    large = F.interpolate(
        table.METHODS["gradcam"].function(explanation)[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False
    )
    expected = F.relu((large * guided_gradients(explanation)).sum(1))
    assert (expected.amax((1, 2)) > 0).all()
    torch.testing.assert_close(guided_grad_cam(explanation), expected)


def test_other_threads_are_not_guided() -> None:
    explanation = _explain(_model())
    expected = explanation.score_gradients(explanation.inputs, TARGETS)
    gradients: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: gradients.append(explanation.score_gradients(explanation.inputs, TARGETS)))
    with pixels._Guided():
        thread.start()
        thread.join()
    assert torch.equal(gradients[0], expected)


@pytest.mark.parametrize(
    ("activation", "reason"), [(nn.ReLU, ""), (nn.ReLU6, ""), (nn.GELU, "ReLU"), (nn.SiLU, "ReLU"), (nn.Tanh, "ReLU")]
)
def test_models_without_guided_backpropagation(activation: Callable[[], nn.Module], reason: str) -> None:
    refusal = why_not(
        _model(activation), Architecture(name="small", head="6", size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3), SIDE
    )
    assert reason in refusal
    assert bool(refusal) == bool(reason)


def test_a_relu_off_the_image_s_path_does_not_count() -> None:
    class Biased(_Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + F.relu(self[-1].bias)

    architecture = Architecture(name="small", head="6", size=SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    smooth, rectified = Biased(nn.GELU), Biased(nn.ReLU)
    with torch.inference_mode():
        assert "needs ReLUs" in why_not(smooth, architecture, SIDE)
        assert not why_not(rectified, architecture, SIDE)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_unchanged_and_maps_are_independent(
    method: Callable[[Explanation], torch.Tensor],
) -> None:
    model = _model().train()
    whole = method(_explain(model))
    with torch.inference_mode():
        explanation = _explain(model)
        explanation.requested = TARGETS.clone()
        inside = method(explanation)
        assert torch.equal(inside, whole)
        explanation = _explain(model)
        explanation.requested = None
        assert method(explanation).isfinite().all()
    alone = _explain(model)
    alone.inputs, alone.requested = alone.inputs[1:2], TARGETS[1:2]
    torch.testing.assert_close(method(alone)[0], whole[1], rtol=1e-4, atol=1e-4 * float(whole[1].max()))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert whole.dtype == torch.float32
    assert whole.shape == (3, SIDE, SIDE)
    assert not whole.requires_grad
    assert (whole >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_bf16_changes_little(method: Callable[[Explanation], torch.Tensor]) -> None:
    exact, rounded = _explain(_model()), _explain(_model(), precision="bf16")
    maps, others = method(exact), method(rounded)
    assert not torch.equal(maps, others)
    both = torch.stack([maps, others], 1).flatten(2)
    assert min(float(torch.corrcoef(pair)[0, 1]) for pair in both) > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_constant_images_and_images_of_nan(method: Callable[[Explanation], torch.Tensor]) -> None:
    explanation = _explain(_model())
    explanation.inputs[0] = BLACK[:, None, None]
    explanation.inputs[1] = torch.nan
    maps = method(explanation)
    assert maps[0].isfinite().all()
    assert maps[1].isnan().any()
    assert maps[2].isfinite().all()
