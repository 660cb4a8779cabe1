"""What a method may ask for, computed once for a batch however many methods need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from localization.methods import attention, gradients
from localization.methods.cut import CutPass, cut_pass
from localization.methods.layers import Layer, evaluating
from utils import autocast


@dataclass(frozen=True)
class Budget:
    """What the costly methods may spend on a picture.

    Attributes:
        max_channels: of the layer, that Score-CAM and Ablation-CAM try: those with the largest Grad-CAM weights.
        steps: of the path of integrated gradients.
        samples: noisy copies of SmoothGrad.
        cells: of occlusion's grid along each side.
        batch: pictures in one forward pass.
    """

    max_channels: int = 64
    steps: int = 24
    samples: int = 16
    cells: int = 14
    batch: int = 32


@dataclass
class Explanation:
    """A batch of pictures under one model: what a method may ask for. Nothing is computed before it is asked for.

    Attributes:
        model: in evaluation mode, its parameters without gradients.
        layers: the target layers.
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        black: (channels,) the normalised value of a black pixel.
        wanted: (n,) int64 classes to explain; None: the predicted ones.
        precision: of the autocast.
        seed: of the methods that draw noise.
    """

    model: nn.Module
    layers: Sequence[Layer]
    inputs: torch.Tensor
    black: torch.Tensor
    wanted: torch.Tensor | None = None
    precision: str = "fp32"
    budget: Budget = field(default_factory=Budget)
    seed: int = 0

    @cached_property
    def cut(self) -> CutPass:
        """The layers' activations and gradients, the scores and the targets: one forward and one backward pass."""
        return cut_pass(self.model, self.layers, self.inputs, self.wanted, self.precision)

    @cached_property
    def scores(self) -> torch.Tensor:
        """(n, classes) float32, before the softmax."""
        return self.cut.scores if self.layers else self.predict(self.inputs)

    @cached_property
    def targets(self) -> torch.Tensor:
        """(n,) int64, the class explained in each picture."""
        return self.scores.argmax(1) if self.wanted is None else self.wanted.to(self.inputs.device)

    @cached_property
    def attention(self) -> attention.AttentionPass:
        """Both rollouts' maps: one recorded pass serves the two."""
        return attention.attention_pass(self.model, self.inputs, self.targets, self.precision)

    @cached_property
    def grad_cam(self) -> torch.Tensor:
        """(n, h, w): guided Grad-CAM's other half."""
        return gradients.mean_of_layers([gradients.grad_cam(f.activations, f.gradients) for f in self.cut.features])

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """The scores (k, classes) float32 of any pictures, `budget.batch` of them at a time, without gradients."""
        with torch.inference_mode(), evaluating(self.model), autocast(inputs.device, self.precision):
            return torch.cat([self.model(part).float() for part in inputs.split(self.budget.batch)])

    def score_gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """∂score/∂input of any pictures (k, channels, height, width) for targets (k,), `budget.batch` at a time."""
        found = []
        for part, wanted in zip(inputs.split(self.budget.batch), targets.split(self.budget.batch), strict=True):
            with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
                leaf = (part.clone() if part.is_inference() else part.detach()).requires_grad_()
                with autocast(leaf.device, self.precision):
                    scores = self.model(leaf).float()
                found.append(torch.autograd.grad(scores.gather(1, wanted.clone()[:, None]).sum(), leaf)[0].float())
        return torch.cat(found)
