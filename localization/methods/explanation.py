"""The passes of one batch that methods share: each is run when a method first asks for it, and only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from localization.methods.attention import AttentionPass, attention_pass
from localization.methods.cut import CutPass, cut_pass
from localization.methods.layers import Layer, evaluating
from utils import autocast


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Precision, seed and cost of the methods.

    Attributes:
        precision: autocast precision, `fp32` or `bf16`.
        seed: seed of the methods that draw noise.
        batch: images per forward pass.
        max_channels: channels per layer used by Score-CAM (those with the largest Grad-CAM weights); for Ablation-CAM,
            forward passes per image.
        steps: nodes on the path of integrated gradients.
        samples: noisy copies of an image in SmoothGrad.
        cells: cells along each side of occlusion's grid.
    """

    precision: str = "fp32"
    seed: int = 0
    batch: int = 32
    max_channels: int = 64
    steps: int = 24
    samples: int = 16
    cells: int = 14


@dataclass(kw_only=True)
class Explanation:
    """A batch of images under one model, with every intermediate result that a method may use.

    Attributes:
        model: in any mode; passes run in evaluation mode, without gradients of parameters.
        layers: the target layers.
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        black: (channels,) normalised value of a black pixel.
        requested: (n,) int64 classes to explain; None: the predicted ones.
    """

    model: nn.Module
    layers: Sequence[Layer]
    inputs: torch.Tensor
    black: torch.Tensor
    requested: torch.Tensor | None = None
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def cut(self) -> CutPass:
        """The layers' activations and gradients, the scores and the targets: one forward and one backward pass."""
        return cut_pass(self.model, self.layers, self.inputs, self.requested, self.settings.precision)

    @cached_property
    def scores(self) -> torch.Tensor:
        """(n, classes) float32, before the softmax."""
        return self.cut.scores if self.layers else self.predict(self.inputs)

    @cached_property
    def targets(self) -> torch.Tensor:
        """(n,) int64, the class explained in each image."""
        return self.scores.argmax(1) if self.requested is None else self.requested.to(self.inputs.device)

    @cached_property
    def attention(self) -> AttentionPass:
        """The maps of both rollouts, from one recorded pass."""
        return attention_pass(self.model, self.inputs, self.targets, self.settings.precision)

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the scores (k, classes) float32 of any inputs, `settings.batch` at a time, without gradients."""
        with torch.inference_mode(), evaluating(self.model), autocast(inputs.device, self.settings.precision):
            return torch.cat([self.model(part).float() for part in inputs.split(self.settings.batch)])

    def score_gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return ∂score/∂input of a batch of inputs (k, channels, height, width) for the classes `targets` (k,)."""
        with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
            leaf = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
            with autocast(leaf.device, self.settings.precision):
                scores = self.model(leaf).float()
            return torch.autograd.grad(scores.gather(1, targets.clone()[:, None]).sum(), leaf)[0].float()
