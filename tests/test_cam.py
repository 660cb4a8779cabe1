"""Grad-CAM against the grad-cam package and a closed form; and that it leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization.cam import CutPass, cut_pass, grad_cam
from pretrained_models import CamLayer, build_model, cam_layer
from utils import UserError

SIZE = 96


class _DenseNetWithoutInPlace(nn.Module):
    """torchvision's DenseNet whose last ReLU is a module and not in place: the rival keeps what it is given."""

    def __init__(self, densenet: nn.Module) -> None:
        super().__init__()
        self.features, self.last_relu, self.classifier = densenet.features, nn.ReLU(), densenet.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.last_relu(self.features(x)), 1).flatten(1))


def _build(name: str, trained_like: bool) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, 4)[0]
    if trained_like:  # other statistics than at the start: weights, running means and variances all moved
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.01 * torch.randn_like(parameter))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("trained_like", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "vgg16", "densenet121"])
def test_equal_to_the_grad_cam_package(name: str, trained_like: bool) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = _build(name, trained_like)
    inputs = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 3, 1])
    layer = cam_layer(model, build_model("resnet18", 4)[1].__class__(name, "", 224, (0.5,) * 3, (0.5,) * 3), SIZE)
    ours = grad_cam(cut_pass(model, layer, inputs, targets)).numpy()

    if name == "densenet121":
        rival = _DenseNetWithoutInPlace(model)
        rival_layer = rival.last_relu
    else:
        rival, rival_layer = model, model.get_submodule(layer.name)
    with GradCAM(rival, [rival_layer]) as cam:
        output = cam.activations_and_grads(inputs)
        sum(ClassifierOutputTarget(int(t))(o) for t, o in zip(targets, output, strict=True)).backward()
        activations = cam.activations_and_grads.activations[0].cpu().numpy()
        gradients = cam.activations_and_grads.gradients[0].cpu().numpy()
        theirs = np.maximum(
            cam.get_cam_image(inputs, rival_layer, targets, activations, gradients, eigen_smooth=False), 0
        )
    assert ours.shape == theirs.shape
    assert theirs.max() > 0
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.max()


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
    cut = cut_pass(model, CamLayer("features"), inputs, torch.arange(4))
    maps = model.seen[-1]
    expected = F.relu(torch.einsum("nk,nkhw->nhw", model.fc.weight[:4], maps)) / maps[0, 0].numel()
    # The ReLU that follows in place has derivative 0 where the map is 0: only a cut behind it sees the whole gradient.
    plain = grad_cam(cut)
    rectified = grad_cam(cut_pass(model, CamLayer("features", relu_after=True), inputs, torch.arange(4)))
    torch.testing.assert_close(rectified, expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(plain, expected, rtol=1e-3)
    torch.testing.assert_close(cut.activations, maps)


def test_predicted_class_is_the_default_and_scores_are_the_model_s() -> None:
    model = _build("densenet121", True)
    inputs = torch.randn(2, 3, SIZE, SIZE)
    cut = cut_pass(model, CamLayer("features", True), inputs)
    with torch.no_grad():
        scores = model(inputs)
    torch.testing.assert_close(cut.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cut.targets, scores.argmax(1))


def test_a_batch_is_its_pictures() -> None:
    model, layer = _build("resnet18", True), CamLayer("layer4")
    inputs = torch.randn(5, 3, SIZE, SIZE)
    whole = grad_cam(cut_pass(model, layer, inputs, torch.tensor([0, 1, 2, 3, 0])))
    single = torch.cat([grad_cam(cut_pass(model, layer, inputs[i : i + 1], torch.tensor([i % 4]))) for i in range(5)])
    torch.testing.assert_close(whole, single, atol=1e-4 * float(whole.max()), rtol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(context: type) -> None:
    model, layer = _build("resnet18", False), CamLayer("layer4")
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with context():
        inputs = torch.randn(2, 3, SIZE, SIZE)
        for _ in range(3):
            cut = cut_pass(model, layer, inputs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert model.training
    assert not model.layer1.training
    assert not model.conv1.weight.requires_grad
    assert model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not cut.activations.requires_grad
    assert cut.gradients.abs().max() > 0


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    model = _build("resnet18", False).train()
    with pytest.raises(UserError, match="no feature map"):
        cut_pass(model, CamLayer("fc"), torch.randn(2, 3, SIZE, SIZE))
    assert model.training
    assert model.fc.weight.requires_grad
    assert not any(len(m._forward_hooks) for m in model.modules())


def test_memory_stays_flat_over_a_loop() -> None:
    import gc

    model, layer = _build("squeezenet1_1", False), CamLayer("features")

    def tensors() -> int:
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    counts = []
    for i in range(60):
        cut_pass(model, layer, torch.randn(1, 3, 64, 64))
        if i in (9, 59):
            counts.append(tensors())
    assert counts[1] <= counts[0] + 2


def test_bf16_gives_nearly_the_same_map() -> None:
    model, layer = _build("resnet18", False), CamLayer("layer4")
    inputs = torch.randn(2, 3, SIZE, SIZE)
    full, half = (grad_cam(cut_pass(model, layer, inputs, torch.tensor([0, 1]), p)) for p in ("fp32", "bf16"))
    for a, b in zip(full, half, strict=True):
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.99


def test_negative_evidence_alone_gives_an_empty_map() -> None:
    cut = CutPass(torch.ones(1, 2, 3, 3), -torch.ones(1, 2, 3, 3), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long))
    assert not grad_cam(cut).any()
