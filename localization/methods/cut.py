"""A forward pass whose graph is cut at the target layers: one backward pass of the tail alone gives every gradient.

There are no backward hooks and no gradients of parameters; a whole batch is one pass, and the model is left unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from localization.methods.layers import Layer, evaluating
from utils import autocast

# Makes 0 positive without changing any other activation: see `cut`.
_ABOVE_ZERO = 1e-30


@dataclass
class Features:
    """The activations and gradients of one layer.

    Attributes:
        activations: (n, channels, h, w) float32 (float64 for a float64 model), the layer's output, rectified if a ReLU
            in `forward` follows.
        gradients: the same shape: ∂score/∂activations for the target class of each image.
    """

    activations: torch.Tensor
    gradients: torch.Tensor


@dataclass
class CutPass:
    """The result of one pass through a cut model.

    Attributes:
        features: one entry per layer.
        scores: (n, classes) float32, before the softmax.
        targets: (n,) int64, the class explained in each image.
    """

    features: list[Features]
    scores: torch.Tensor
    targets: torch.Tensor


@contextmanager
def cut(model: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[str, torch.Tensor]]:
    """Cut `model` at `layers` and enable gradients while the block runs; yield a mapping from layer name to output.

    Each pass fills the mapping. The first layer's output becomes a leaf of a new graph; a later layer's output stays
    part of that graph. A layer passes on a copy of its output, so that an in-place ReLU after it (VGG, DenseNet) cannot
    change what was kept. If `forward` itself rectifies the output (`relu_after`, DenseNet), the rectified map is the
    target. The copy is then raised by 1e-30, which changes no sum in float32 or bfloat16 but makes the second ReLU,
    whose derivative at exactly 0 is 0, pass the gradient on unchanged.
    """
    kept: dict[str, torch.Tensor] = {}

    def hook_of(layer: Layer) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            activation = _widened(F.relu(output) if layer.relu_after else output)
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            kept[layer.name] = activation
            passed = activation + _ABOVE_ZERO if layer.relu_after else activation.clone()
            return passed.to(output.dtype)

        return hook

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), ExitStack() as hooks:
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
    """Run one forward pass and compute the gradients of the target scores with respect to the layers' outputs.

    It also works inside a caller's `no_grad` or `inference_mode`.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain; None: the predicted ones.
        precision: autocast precision, `fp32` or `bf16`.

    Raises: `UserError` for a layer whose output is not a grid.
    """
    with cut(model, layers) as kept, autocast(inputs.device, precision):
        scores = _widened(model(inputs.clone() if inputs.is_inference() else inputs.detach()))
        targets = scores.argmax(1) if targets is None else targets.to(scores.device).clone()  # not an inference tensor
        outputs = [kept[layer.name] for layer in layers]
        # In evaluation mode the images of a batch are independent: the gradient of the sum is that of each score.
        gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), outputs)
    features = [
        Features(*(layer.to_maps(t.detach()) for t in pair))
        for layer, *pair in zip(layers, outputs, gradients, strict=True)
    ]
    return CutPass(features, scores.detach(), targets)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 as float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
