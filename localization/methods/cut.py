"""A forward pass whose graph is cut at the target layers: one backward pass of the tail alone gives every gradient.

No backward hooks, no gradients of parameters, a batch at a time; the model is left as it was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from localization.methods.layers import Layer, evaluating
from utils import UserError, autocast

# The smallest lift that makes 0 positive without changing any other activation: see `cut`.
_ABOVE_ZERO = 1e-30


@dataclass
class Features:
    """What a pass gives at one layer.

    Attributes:
        activations: (n, channels, h, w) float32 (of a float64 model float64), the layer's output, after its ReLU where
            it has one.
        gradients: the same shape, of each image's target score with respect to them.
    """

    activations: torch.Tensor
    gradients: torch.Tensor


@dataclass
class CutPass:
    """What one pass through a cut model gives.

    Attributes:
        features: of each layer.
        scores: (n, classes) float32, before the softmax.
        targets: (n,) int64, the class explained in each image.
    """

    features: list[Features]
    scores: torch.Tensor
    targets: torch.Tensor


@contextmanager
def cut(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, torch.Tensor]]:
    """Cut `model` at `layers` while the block runs: after a forward pass their outputs stand under their names.

    The first layer's output becomes a leaf of a new graph, a later one's stays a part of it. What a layer passes on is
    a copy, so that an in-place ReLU behind it (VGG's, DenseNet's) cannot change what was kept. Where `forward` itself
    rectifies the layer's output (`relu_after`, DenseNet), the rectified map is the target: the copy is then raised by
    1e-30, which changes no sum in float32 or bfloat16, but lets the second ReLU, whose derivative at exactly 0 is 0,
    pass the gradient on as if it were not there.
    """
    kept: dict[str, torch.Tensor] = {}

    def hook_of(layer: Layer) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            if not isinstance(output, torch.Tensor):
                raise UserError(f"--layer {layer.name}: its output is no tensor")
            activation = _widened(F.relu(output) if layer.relu_after else output)
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            kept[layer.name] = activation
            passed = activation + _ABOVE_ZERO if layer.relu_after else activation.clone()
            return passed.to(output.dtype)

        return hook

    with ExitStack() as hooks, evaluating(model):
        for layer in layers:
            hooks.enter_context(model.get_submodule(layer.name).register_forward_hook(hook_of(layer)))
        yield kept


def cut_pass(
    model: nn.Module,
    layers: Sequence[Layer],
    inputs: torch.Tensor,
    targets: torch.Tensor | None = None,
    precision: str = "fp32",
) -> CutPass:
    """One forward pass and the gradients of the target scores with respect to the layers' outputs.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain; None: the predicted ones.
        precision: of the autocast.

    Works inside callers' `no_grad` and `inference_mode`. Raises: `UserError` for a layer whose output is no grid.
    """
    image = (inputs.shape[-2], inputs.shape[-1])
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        cut(model, layers) as kept,
        autocast(inputs.device, precision),
    ):
        scores = _widened(model(inputs.clone() if inputs.is_inference() else inputs.detach()))
        targets = scores.argmax(1) if targets is None else targets.to(scores.device).clone()  # no inference tensor
        outputs = [kept[layer.name] for layer in layers]
        for layer, output in zip(layers, outputs, strict=True):
            layer.to_maps(output.detach(), image)
        # The images of a batch do not see each other in evaluation mode: the gradient of the sum is each one's own.
        gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), outputs)
    features = [
        Features(*(layer.to_maps(t.detach(), image) for t in pair))
        for layer, *pair in zip(layers, outputs, gradients, strict=True)
    ]
    return CutPass(features, scores.detach(), targets)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """bfloat16 as float32; what is wider stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
