"""The gradient family against its peers and closed forms; and that a pass leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.explainer import Explainer
from localization.methods.cut import cut_pass
from localization.methods.explanation import Budget
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
from localization.methods.table import METHODS, method_name
from localization.states import MapState
from pretrained_models import Architecture, build_model
from utils import UserError

SIZE = 96
MODELS = ("resnet18", "vgg16", "densenet121", "vit_b_16", "swin_t", "convnext_tiny")
FAMILY = (grad_cam, grad_cam_plus_plus, hires_cam, x_grad_cam, layer_cam, eigen_cam, eigen_grad_cam)


class _DenseNetWithoutInPlace(nn.Module):
    """torchvision's DenseNet whose last ReLU is a module and not in place: the rivals keep what they are given."""

    def __init__(self, densenet: nn.Module) -> None:
        super().__init__()
        self.features, self.last_relu, self.classifier = densenet.features, nn.ReLU(), densenet.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.last_relu(self.features(x)), 1).flatten(1))


def _build(name: str, weights: str) -> nn.Module:
    """The network with `random`, `moved` (other statistics than at the start) or `trained` weights, to evaluate."""
    torch.manual_seed(0)
    if name == "vit_b_16":  # its own architecture for a smaller picture
        from torchvision.models import vit_b_16

        model = vit_b_16(image_size=SIZE, num_classes=4)
        nn.init.normal_(model.heads[-1].weight, std=0.02)  # torchvision starts it at zeros: no class has evidence
    else:
        model = build_model(name, 4)[0]
    if weights == "moved":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.01 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
    if weights == "trained":
        _train(model)
    return model.eval()


def _train(model: nn.Module, steps: int = 4) -> None:
    """A few steps of AdamW: the class is the quarter of the picture that is bright."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    labels = torch.arange(4)
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(model(_quarters(labels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)


def _quarters(labels: torch.Tensor) -> torch.Tensor:
    inputs = torch.randn(len(labels), 3, SIZE, SIZE)
    for picture, label in zip(inputs, labels.tolist(), strict=True):
        top, left = (label // 2) * SIZE // 2, (label % 2) * SIZE // 2
        picture[:, top : top + SIZE // 2, left : left + SIZE // 2] += 2
    return inputs


def _architecture(name: str, model: nn.Module) -> Architecture:
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return Architecture(name, head, SIZE, (0.5,) * 3, (0.5,) * 3)


def _rival_reshape(name: str) -> Any:
    """What the rivals' users write for their transformers."""
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
        found = cam.get_cam_image(inputs, layer, targets, activations, gradients, eigen_smooth=False)
    model.zero_grad()
    return np.maximum(found, 0)


def _torchcam(kind: str, model: nn.Module, layer: nn.Module, reshape: Any, inputs: Any, targets: Any) -> Any:
    from torchcam import methods

    with getattr(methods, kind)(model, layer, reshape_transform=reshape) as extractor:
        (found,) = extractor(targets.tolist(), model(inputs), normalized=False)
    model.zero_grad()
    return found.detach().clamp_min(0).numpy()


@pytest.mark.parametrize("weights", ["random", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_grad_cam_and_torchcam(name: str, weights: str) -> None:
    model = _build(name, weights)
    inputs = _quarters(torch.tensor([0, 3]))
    (layer,) = find_layers(model, _architecture(name, model), SIZE)
    # the class of each picture with the most evidence: a random network has none at all for some
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
    rival = _DenseNetWithoutInPlace(model) if name == "densenet121" else model
    rival_layer = rival.last_relu if name == "densenet121" else model.get_submodule(layer.name)
    for function, kind in kinds.items():
        ours = function(features.activations, features.gradients).numpy()
        for peer in (_grad_cam_package, _torchcam):
            theirs = peer(kind, rival, rival_layer, _rival_reshape(name), inputs, targets)
            assert ours.shape == theirs.shape
            assert theirs.max() > 0
            assert np.abs(ours - theirs).max() <= 1e-4 * theirs.max(), (kind, peer.__name__)


@pytest.mark.parametrize("shape", [(8, 3, 4), (40, 7, 7), (5, 9, 8), (64, 1, 6)])
def test_eigen_cam_is_the_package_s_up_to_sign(shape: tuple[int, int, int]) -> None:
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    values = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2)).relu() + 0.3 * torch.randn(3, *shape)
    weights = torch.randn(3, *shape)
    for ours, product in ((eigen_cam(values, weights), values), (eigen_grad_cam(values, weights), values * weights)):
        theirs = get_2d_projection(product.numpy())
        total = product.sum(1).numpy()
        for one, other, mean in zip(ours.numpy(), theirs, total, strict=True):
            sign = np.sign((other * (mean - mean.mean())).sum())  # our rule: hot is where the sum over channels is
            assert np.abs(one - np.maximum(sign * other, 0)).max() <= 1e-4 * np.abs(other).max()


def test_eigen_cam_of_crowded_and_of_no_eigenvalues() -> None:
    """Where no direction stands out the whole decomposition is used; where nothing varies the map is empty."""
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
    """Eq. 10 of Chattopadhay 2018 by autograd's own second and third derivatives of Y = exp(S), cell by cell."""
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


def test_predicted_class_is_the_default_and_scores_are_the_model_s() -> None:
    model = _build("densenet121", "moved")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    cut = cut_pass(model, [Layer("features", relu_after=True)], inputs)
    with torch.no_grad():
        scores = model(inputs)
    torch.testing.assert_close(cut.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.targets, scores.argmax(1))


def test_a_batch_is_its_pictures() -> None:
    model, layer = _build("resnet18", "moved"), Layer("layer4")
    inputs = torch.randn(5, 3, SIZE, SIZE)
    whole = _grad_cam(model, layer, inputs, torch.tensor([0, 1, 2, 3, 0]))
    single = torch.cat([_grad_cam(model, layer, inputs[i : i + 1], torch.tensor([i % 4])) for i in range(5)])
    torch.testing.assert_close(whole, single, atol=1e-4 * float(whole.max()), rtol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(context: type) -> None:
    model, layer = _build("resnet18", "random"), Layer("layer4")
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


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = _build("resnet18", "random").train()
    with pytest.raises(UserError, match="no feature map"):
        cut_pass(model, [Layer("fc")], torch.randn(2, 3, SIZE, SIZE))
    assert model.training
    assert model.fc.weight.requires_grad
    assert not any(len(m._forward_hooks) for m in model.modules())


def test_memory_stays_flat_over_a_loop(tmp_path: Path) -> None:
    """Tensors and resident memory, over pictures explained by every method and drawn."""
    import gc

    from localization.drawing.overlay import OverlayDrawer, Square

    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(True), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(True), head).eval()
    explainer = Explainer(net, Architecture("small", "4.2", 32, (0.5,) * 3, (0.25,) * 3), 32, budget=Budget(4, 2, 2, 2))
    drawer = OverlayDrawer(Square("squash", 32))
    counts, resident = [], []
    for i in range(150):
        explanation = explainer.explain(torch.randn(2, 3, 32, 32))
        for method in explainer.available:
            maps = METHODS[method].function(explanation)
        if i % 10 == 0:
            picture = np.zeros((32, 32), np.uint8)
            drawer.draw(tmp_path / "a.png", picture, maps[0].numpy(), MapState.OK, "picture", unit="")
        if i in (29, 149):
            gc.collect()
            counts.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert counts[1] <= counts[0] + 2
    assert resident[1] - resident[0] < 2**25  # what the allocator may keep; a graph kept per pass would be more


def test_bf16_gives_nearly_the_same_map() -> None:
    model, layer = _build("resnet18", "random"), Layer("layer4")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    full, half = (_grad_cam(model, layer, inputs, torch.tensor([0, 1]), p) for p in ("fp32", "bf16"))
    for a, b in zip(full, half, strict=True):
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.99


@pytest.mark.parametrize("function", [grad_cam, grad_cam_plus_plus, hires_cam, x_grad_cam, layer_cam, eigen_grad_cam])
def test_negative_evidence_alone_gives_an_empty_map(function: Any) -> None:
    assert not function(torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3)).any()


def test_layers_are_averaged_at_their_own_scales() -> None:
    small, large = torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[300.0, 0.0, 0.0, 0.0]]])
    assert mean_of_layers([small]) is small
    torch.testing.assert_close(mean_of_layers([small, large]), torch.tensor([[[0.5, 0.125, 0.375, 0.5]]]))
    torch.testing.assert_close(mean_of_layers([torch.zeros(1, 1, 4), large]), large / 600)


def test_several_layers_in_one_pass_have_each_layer_s_own_gradients() -> None:
    model = _build("resnet18", "moved")
    inputs, targets = torch.randn(2, 3, SIZE, SIZE), torch.tensor([1, 2])
    together = cut_pass(model, [Layer("layer3"), Layer("layer4")], inputs, targets).features
    for features, name in zip(together, ("layer3", "layer4"), strict=True):
        alone = cut_pass(model, [Layer(name)], inputs, targets).features[0]
        torch.testing.assert_close(features.activations, alone.activations, rtol=1e-4, atol=1e-5)
        scale = float(alone.gradients.abs().max())
        torch.testing.assert_close(features.gradients / scale, alone.gradients / scale, rtol=1e-3, atol=1e-5)


def test_two_models_at_once() -> None:
    """In two threads, interleaved: each has its own maps, and nothing of the other's."""
    from concurrent.futures import ThreadPoolExecutor

    models = [_build(name, "moved") for name in ("resnet18", "squeezenet1_1")]
    layers = [Layer("layer4"), Layer("features")]
    inputs, targets = torch.randn(1, 3, SIZE, SIZE), torch.tensor([1])
    alone = [_grad_cam(m, layer, inputs, targets) for m, layer in zip(models, layers, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_grad_cam, models[i % 2], layers[i % 2], inputs, targets) for i in range(8)]
        for i, job in enumerate(jobs):
            torch.testing.assert_close(job.result(), alone[i % 2], rtol=1e-4, atol=1e-5)


def test_one_pass_serves_the_whole_family() -> None:
    model = _build("resnet18", "random")
    explainer = Explainer(model, _architecture("resnet18", model), SIZE)
    calls = []
    handle = model.conv1.register_forward_hook(lambda *_: calls.append(1))
    explanation = explainer.explain(torch.randn(2, 3, SIZE, SIZE))
    for name in list(METHODS)[:7]:
        assert METHODS[name].function(explanation).shape == (2, 3, 3)
    handle.remove()
    assert len(calls) == 1


def test_every_method_of_the_table_on_every_kind_of_network() -> None:
    """Each method either gives finite maps ≥ 0 that fit the batch, or the architecture cannot have it and says why."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)
    nn.init.normal_(vit.heads[-1].weight)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    nets = {
        "relu": nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(True), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(True), head),
        "gelu": nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GELU(), nn.Conv2d(6, 6, 3, 2, 1), nn.GELU(), head),
        "vit": vit,
    }
    lacking = {"relu": {"rollout", "gradient_rollout"}, "vit": {"guided_gradcam"}}
    lacking["gelu"] = lacking["relu"] | lacking["vit"]
    for name, net in nets.items():
        linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)][-1]
        explainer = Explainer(
            net.eval(), Architecture(name, linear, 32, (0.5,) * 3, (0.25,) * 3), 32, budget=Budget(8, 4, 2, 4, 8)
        )
        assert set(explainer.available) == set(METHODS) - lacking[name]
        assert explainer.choose("all") == explainer.available
        explanation = explainer.explain(torch.randn(2, 3, 32, 32), torch.tensor([0, 2]))
        for method in explainer.available:
            maps = METHODS[method].function(explanation)
            assert (len(maps), maps.ndim, maps.dtype) == (2, 3, torch.float32), (name, method)
            assert torch.isfinite(maps).all(), (name, method)
            assert maps.min() >= 0, (name, method)
            assert not maps.requires_grad, (name, method)
        for method in lacking[name]:
            with pytest.raises(UserError, match=f"--method {method}: {name} cannot have it: .*; it can have gradcam"):
                explainer.choose(f"gradcam,{method}")


def test_method_names() -> None:
    for word in ("gradcam++", "Grad-CAM++", "grad_cam_plus_plus", " GradCAM++"):
        assert method_name(word) == "gradcam++"
    assert method_name("Integrated Gradients") == "integrated_gradients"
    with pytest.raises(UserError, match="did you mean layercam"):
        method_name("layrcam")
