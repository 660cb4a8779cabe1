"""The table of methods: every row on every kind of network, and names in any spelling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localization.explainer import Explainer
from localization.methods.explanation import Settings
from localization.methods.table import METHODS, method_name
from tests.helpers.networks import SIZE, architecture_of, build_network
from utils import UserError


def test_one_pass_serves_the_whole_family() -> None:
    model = build_network("resnet18", "random")
    explainer = Explainer.from_architecture(model, architecture_of("resnet18", model), SIZE)
    calls = []
    handle = model.conv1.register_forward_hook(lambda *_: calls.append(1))
    explanation = explainer.explain(torch.randn(2, 3, SIZE, SIZE))
    for name in list(METHODS)[:7]:
        assert METHODS[name].function(explanation).shape == (2, 3, 3)
    handle.remove()
    assert len(calls) == 1


def test_every_method_of_the_table_on_every_kind_of_network() -> None:
    """Each method either gives finite maps ≥ 0 that fit the batch, or is unavailable for a stated reason."""
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
        settings = Settings(max_channels=8, steps=4, samples=2, cells=4, batch=8)
        explainer = Explainer(net.eval(), mean=(0.5,) * 3, std=(0.25,) * 3, size=32, settings=settings)
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
            reason = f"^method {method}: not available for {type(net).__name__}: .*; choose from gradcam"
            with pytest.raises(UserError, match=reason):
                explainer.choose(f"gradcam,{method}")


def test_method_names() -> None:
    for word in ("gradcam++", "Grad-CAM++", "grad_cam_plus_plus", " GradCAM++"):
        assert method_name(word) == "gradcam++"
    assert method_name("Integrated Gradients") == "integrated_gradients"
    with pytest.raises(UserError, match="did you mean layercam"):
        method_name("layrcam")
