"""Networks for tests of maps, with weights other than a constructor's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pretrained_models import Architecture, build_model

SIZE = 96


def build_network(name: str, weights: str) -> nn.Module:
    """Return a network with `random`, `moved` (perturbed, with other statistics) or `trained` weights."""
    torch.manual_seed(0)
    if name == "vit_b_16":  # its own architecture for a smaller image
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
    """Take a few steps of AdamW on images whose class is the bright quarter."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    labels = torch.arange(4)
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(model(bright_quarters(labels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)


def bright_quarters(labels: torch.Tensor) -> torch.Tensor:
    inputs = torch.randn(len(labels), 3, SIZE, SIZE)
    for image, label in zip(inputs, labels.tolist(), strict=True):
        top, left = (label // 2) * SIZE // 2, (label % 2) * SIZE // 2
        image[:, top : top + SIZE // 2, left : left + SIZE // 2] += 2
    return inputs


def architecture_of(name: str, model: nn.Module) -> Architecture:
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return Architecture(name=name, head=head, size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
