"""Score-CAM, Ablation-CAM and occlusion against closed forms, brute force, and peers where they follow the papers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.methods import perturbation
from localization.methods.explanation import Explanation, Settings
from localization.methods.layers import Layer
from localization.methods.perturbation import ablation_cam, occlusion, score_cam

SIDE, CHANNELS, CLASSES = 32, 6, 3
METHODS = (score_cam, ablation_cam, occlusion)
TARGETS = torch.tensor([2, 0, 1])
BLACK = torch.tensor([-2.0, -1.9, -1.8])


class _Small(nn.Module):
    """Two convolutions with ReLUs, global average pooling, a linear layer. Channel 4 of `features` is never active."""

    def __init__(self, stride: int = 4, bias: float = 0.0) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, CHANNELS, 3, stride, padding=1)
        self.features = nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
        self.fc = nn.Linear(CHANNELS, CLASSES)
        with torch.no_grad():
            second.bias[4] = -100
            self.fc.weight.mul_(5)
            self.fc.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class _Late(_Small):
    """Rectifies the output of `features` in place, inside `forward`, as torchvision's DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.features = self.features[:3]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.features(x), inplace=True).square().mean((2, 3)))


class _Tokens(nn.Module):
    """The end of a transformer: a class token, patch tokens, and a branch that bypasses the layer `norm`."""

    def __init__(self, fixed_batch: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, CHANNELS, 8, 8), nn.LayerNorm(CHANNELS)
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)
        self.fc = nn.Linear(CHANNELS, CLASSES)
        self.fixed_batch, self.in_place = fixed_batch, in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = len(x)
        tokens = F.pad(self.patches(x).flatten(2).mT, (0, 0, 1, 0), value=0.5)
        inside = self.norm(tokens)
        inside = inside + self.attention(inside, inside, inside, need_weights=False)[0]
        if self.in_place:
            tokens += inside
        else:
            tokens = tokens + inside
        return self.fc(tokens.view(batch, -1, CHANNELS)[:, 0] if self.fixed_batch else tokens[:, 0])


def _model(build: Callable[..., nn.Module] = _Small, **arguments: object) -> nn.Module:
    torch.manual_seed(0)
    return build(**arguments).eval()


def _explain(model: nn.Module, layer: Layer | None = None, count: int = 3, **settings: Any) -> Explanation:
    inputs = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Explanation(
        model=model,
        layers=[layer or Layer("features")],
        inputs=inputs,
        black=BLACK,
        requested=TARGETS[:count],
        settings=Settings(**({"cells": 4, "batch": 5} | settings)),
    )


def _assert_same_maps(ours: torch.Tensor, expected: torch.Tensor) -> None:
    peaks = expected.amax((1, 2), keepdim=True)
    assert ours.shape == expected.shape
    assert (peaks > 0).all()
    assert ((ours - expected).abs() <= 1e-4 * peaks).all()


@contextlib.contextmanager
def _counted(model: nn.Module) -> list[int]:
    """Record the sizes of the batches that reach the model."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    handle.remove()


@torch.no_grad()
def _score_cam_by_hand(model: _Small, x: torch.Tensor, target: int, channels: list[int]) -> torch.Tensor:
    """Run the paper's algorithm 1 for one image (3, h, w), one channel at a time, with its baseline."""
    maps, increases = model.features(x[None])[0], []
    baseline = model(torch.zeros_like(x)[None])[0, target]
    for k in channels:
        large = F.interpolate(maps[None, None, k], x.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        mask = (large - large.min()) / (large.max() - large.min())
        increases.append(model((x * mask)[None])[0, target] - baseline)
    weights = torch.stack(increases).softmax(0)
    return F.relu(sum(weight * maps[k] for weight, k in zip(weights, channels, strict=True)))


def test_score_cam_is_the_paper_s() -> None:
    model = _model()
    explanation = _explain(model)
    alive = [0, 1, 2, 3, 5]
    pairs = zip(explanation.inputs, TARGETS, strict=True)
    _assert_same_maps(
        score_cam(explanation), torch.stack([_score_cam_by_hand(model, x, int(t), alive) for x, t in pairs])
    )


def test_score_cam_equals_both_peers_if_nothing_is_enlarged() -> None:
    """They do not enlarge as the paper does (torchcam rescales first), and count dead channels in the softmax."""
    from pytorch_grad_cam import ScoreCAM as GradCamPackage
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchcam.methods import ScoreCAM as TorchCam

    model = _model(stride=1)
    model.features[2].bias.data[4] = 0.1  # no channel is dead
    explanation = _explain(model)
    ours = score_cam(explanation)
    with TorchCam(model, "features", batch_size=4, input_shape=(3, SIDE, SIDE)) as cam:
        model(explanation.inputs)
        _assert_same_maps(ours, F.relu(cam(TARGETS.tolist(), normalized=False)[0].detach()))
    with GradCamPackage(model, [model.features]) as cam:
        activations = model.features(explanation.inputs).detach()
        outputs = [ClassifierOutputTarget(int(t)) for t in TARGETS]
        weights = cam.get_cam_weights(explanation.inputs, model.features, outputs, activations.numpy(), None)
    _assert_same_maps(ours, F.relu(torch.einsum("nk,nkhw->nhw", torch.from_numpy(weights), activations)))


def test_the_channels_with_the_largest_grad_cam_weights_are_tried() -> None:
    """Before global pooling, a channel's Grad-CAM weight is its weight in the linear layer over the map's area."""
    model = _model()
    explanation = _explain(model, max_channels=2)
    with _counted(model) as sizes:
        maps = score_cam(explanation)
    expected = []
    for x, target in zip(explanation.inputs, TARGETS, strict=True):
        weights = model.fc.weight[target].abs().detach().clone()
        weights[4] = 0
        expected.append(_score_cam_by_hand(model, x, int(target), weights.topk(2).indices.tolist()))
    _assert_same_maps(maps, torch.stack(expected))
    assert sum(sizes) == 1 * 3 + 2 * 3  # the cut pass, and two channels for each image


@pytest.mark.parametrize("bias", [9.0, -9.0])
def test_ablation_cam_before_global_pooling_is_cam_over_the_score(bias: float) -> None:
    """y − y_k = w_k mean(A_k): the maps are ReLU(Σ_k w_k mean(A_k) A_k) / |y|, whatever the sign of y."""
    model = _model(bias=bias)
    explanation = _explain(model)
    maps = model.features(explanation.inputs).detach()
    weights = model.fc.weight[TARGETS].detach() * maps.mean((2, 3))
    scores = model(explanation.inputs).gather(1, TARGETS[:, None])[:, 0].detach()
    assert (scores * bias > 0).all()
    expected = F.relu(torch.einsum("nk,nkhw->nhw", weights, maps)) / scores.abs()[:, None, None]
    _assert_same_maps(ablation_cam(explanation), expected)


def test_ablation_cam_equals_the_grad_cam_package_for_positive_scores() -> None:
    from pytorch_grad_cam import AblationCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = _model(bias=9.0)
    explanation = _explain(model)
    ours = ablation_cam(explanation)
    activations = model.features(explanation.inputs).detach()
    with AblationCAM(model, [model.features], batch_size=2) as cam:
        outputs = [ClassifierOutputTarget(int(t)) for t in TARGETS]
        weights = cam.get_cam_weights(explanation.inputs, model.features, outputs, activations.numpy(), None)
    _assert_same_maps(ours, F.relu(torch.einsum("nk,nkhw->nhw", torch.from_numpy(weights), activations)))


@torch.no_grad()
def _ablation_by_hand(explanation: Explanation, edit_of: Callable[[int], Callable]) -> torch.Tensor:
    """Run a whole forward pass for each channel of each image; `edit_of(k)` is a hook that removes channel k."""
    layer, model = explanation.layers[0], explanation.model
    whole, parts = model(explanation.inputs), []
    for k in range(CHANNELS):
        handle = model.get_submodule(layer.name).register_forward_hook(edit_of(k))
        parts.append(model(explanation.inputs))
        handle.remove()
    scores = torch.stack([whole, *parts], 2).gather(1, TARGETS[:, None, None].expand(-1, 1, CHANNELS + 1))[:, 0]
    weights = (scores[:, :1] - scores[:, 1:]) / scores[:, :1].abs()
    return F.relu(torch.einsum("nk,nkhw->nhw", weights, explanation.cut.features[0].activations))


@pytest.mark.parametrize(
    ("arguments", "images"),
    [({}, 1 + 2 + 1 + 3), ({"fixed_batch": True}, 1 + 2 + 3 * 8), ({"in_place": True}, 1 + 3 * 8)],
    ids=["broadcast", "its batch is fixed", "adds in place"],
)
def test_ablation_cam_of_tokens(arguments: dict[str, bool], images: int) -> None:
    """The tokens of one image are copied if the model accepts that, else the image is."""

    def edit_of(k: int) -> Callable:
        def edit(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            without = output.clone()
            without[:, 1:, k] = 0
            return without

        return edit

    model = _model(_Tokens, **arguments)
    explanation = _explain(model, Layer("norm", "tokens", 1))
    expected = _ablation_by_hand(explanation, edit_of)
    with _counted(model) as sizes:
        maps = ablation_cam(explanation)
    _assert_same_maps(maps, expected)
    # whether it takes copies: the quick way (1), the safe one (2); the share behind the layer (1); then each image:
    # once, or six channels in batches of five with the image as it is in each
    assert sum(sizes) == images


def test_a_model_that_mixes_copies_is_not_trusted() -> None:
    """The right number of scores is not enough: here each copy would get the batch's mean."""

    class Mixing(_Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = self.features(x).mean((2, 3))
            return self.fc(pooled if len(pooled) == len(x) else pooled.mean(0, keepdim=True).expand_as(pooled))

    mixing, plain = _explain(_model(Mixing)), _explain(_model())
    _assert_same_maps(ablation_cam(mixing), ablation_cam(plain))


def test_ablation_cam_of_a_layer_that_forward_rectifies() -> None:
    def edit_of(k: int) -> Callable:
        def edit(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            return F.relu(output) * (torch.arange(CHANNELS) != k)[:, None, None]

        return edit

    explanation = _explain(_model(_Late), Layer("features", relu_after=True))
    _assert_same_maps(ablation_cam(explanation), _ablation_by_hand(explanation, edit_of))


def test_ablation_cam_is_limited_by_work() -> None:
    """All channels of a last layer are used; of an early layer as many as cost the given number of passes."""

    class Heavy(_Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.features(x)
            for _ in range(200):
                features = F.conv2d(features, torch.eye(CHANNELS)[:, :, None, None])
            return self.fc(features.mean((2, 3)))

    light, heavy = _model(), _model(Heavy)
    _assert_same_maps(ablation_cam(_explain(light, max_channels=2)), ablation_cam(_explain(light)))
    few, share = (
        _explain(heavy, max_channels=2, batch=500),
        perturbation._share_behind(_explain(heavy), Layer("features")),
    )
    # one place of the layer: 3 · 5 · 9 multiplications at each of 16 pixels, then 5 · 6 · 9; behind it 200 · 6 · 6
    assert share == pytest.approx(7200 / (7200 + 16 * 135 + 270), abs=1e-3)
    assert int(2 / share) == 2
    expected = []
    for index, target in enumerate(TARGETS):
        maps = few.cut.features[0].activations[index]
        weights = heavy.fc.weight[target].detach() * maps.mean((1, 2))
        order = heavy.fc.weight[target].detach().abs() * (torch.arange(CHANNELS) != 4)
        chosen = order.topk(2).indices
        score = heavy(few.inputs)[index, target].detach().abs()
        expected.append(F.relu(torch.einsum("k,khw->hw", weights[chosen], maps[chosen])) / score)
    torch.testing.assert_close(ablation_cam(few), torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_occlusion_equals_captum() -> None:
    from captum.attr import Occlusion

    model, side = _model(), SIDE // 4
    explanation = _explain(model)
    explanation.requested = None  # the predicted classes: there is evidence for them
    attributed = Occlusion(model).attribute(
        explanation.inputs,
        sliding_window_shapes=(3, 2 * side, 2 * side),
        strides=(3, side, side),
        target=explanation.targets,
        baselines=0,
    )
    _assert_same_maps(occlusion(explanation), F.relu(attributed[:, 0, side // 2 :: side, side // 2 :: side]))


@torch.no_grad()
def test_occlusion_of_an_odd_portrait() -> None:
    """A cell is the mean over the windows that it is part of; cells end at round(i · side / cells)."""
    model = _model()
    x = torch.randn(1, 3, 37, 23, generator=torch.Generator().manual_seed(2))
    explanation = Explanation(
        model=model, layers=[], inputs=x, black=BLACK, requested=TARGETS[:1], settings=Settings(cells=5, batch=7)
    )
    rows, columns = (0, 7, 15, 22, 30, 37), (0, 5, 9, 14, 18, 23)
    drops: dict[tuple[int, int], list[float]] = {}
    for i in range(4):
        for j in range(4):
            covered = x.clone()
            covered[..., rows[i] : rows[i + 2], columns[j] : columns[j + 2]] = 0
            drop = float((model(x) - model(covered))[0, 2])
            for cell in ((i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)):
                drops.setdefault(cell, []).append(drop)
    expected = torch.tensor([[max(0.0, sum(d := drops[i, j]) / len(d)) for j in range(5)] for i in range(5)])
    _assert_same_maps(occlusion(explanation), expected[None])


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_unchanged_and_maps_are_independent(
    method: Callable[[Explanation], torch.Tensor],
) -> None:
    model = _model().train()
    whole = method(_explain(model))
    with torch.inference_mode():
        inside = method(_explain(model))
    assert torch.equal(inside, whole)
    alone = _explain(model)
    alone.inputs, alone.requested = alone.inputs[1:2], TARGETS[1:2]
    torch.testing.assert_close(method(alone)[0], whole[1], rtol=1e-4, atol=1e-4 * float(whole[1].max()))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert whole.dtype == torch.float32
    assert not whole.requires_grad


@pytest.mark.parametrize("method", METHODS)
def test_bf16_changes_little(method: Callable[[Explanation], torch.Tensor]) -> None:
    exact, rounded = _explain(_model()), _explain(_model(), precision="bf16")
    maps, others = method(exact), method(rounded)
    assert ((maps - others).abs().amax((1, 2)) <= 0.1 * maps.amax((1, 2))).all()
    if method is not occlusion:  # its activations were rounded
        assert not torch.equal(maps, others)


def test_ablation_cam_s_weights_are_never_rounded() -> None:
    exact, rounded = _explain(_model()), _explain(_model(), precision="bf16")
    rounded.cut = exact.cut  # the same activations
    assert torch.equal(ablation_cam(rounded), ablation_cam(exact))


@pytest.mark.parametrize("method", [score_cam, ablation_cam])
def test_no_active_channel_gives_an_empty_map_and_nan_stays_nan(method: Callable[[Explanation], torch.Tensor]) -> None:
    model = _model()
    model.features[2].bias.data.fill_(-1000)
    assert method(_explain(model)).tolist() == [[[0.0] * 8] * 8] * 3
    model.features[2].bias.data.fill_(torch.nan)
    assert method(_explain(model)).isnan().all()


@pytest.mark.parametrize("method", [score_cam, ablation_cam])
def test_several_layers_are_averaged_over_their_peaks(
    method: Callable[[Explanation], torch.Tensor],
) -> None:
    model = _model(stride=1)
    both = _explain(model)
    both.layers = [Layer("features.1"), Layer("features.3")]
    single = [method(_explain(model, layer)) for layer in both.layers]
    expected = sum(maps / maps.amax((1, 2), keepdim=True) for maps in single) / 2
    torch.testing.assert_close(method(both), expected, rtol=1e-4, atol=1e-4)
