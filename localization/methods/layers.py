"""The layers that class activation maps are computed from, and the grids that their outputs form.

A layer's output is a grid in one of three forms, recognised automatically: `maps` (n, channels, h, w) in CNNs,
`maps_last` (n, h, w, channels) in Swin, `tokens` (n, prefix + h·w, channels) in ViT, where the prefix holds the class
token, the distillation token and the registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from pretrained_models import CAM_LAYERS, Architecture, CamLayer
from utils import UserError, did_you_mean

Layers = str | nn.Module | Sequence[str | nn.Module] | None
MOST_PREFIX_TOKENS = 16
_NO_FEATURES = (nn.Dropout, nn.Identity, nn.Flatten, nn.Softmax, nn.Linear)


@dataclass(frozen=True)
class Layer:
    """A layer and the form of its output.

    Attributes:
        name: dotted name of the module.
        form: `maps`, `maps_last` or `tokens`.
        prefix: number of tokens before those of the image.
        relu_after: whether a functional ReLU follows in `forward` (DenseNet), whose output is then the target.
    """

    name: str
    form: str = "maps"
    prefix: int = 0
    relu_after: bool = False

    def to_maps(self, output: torch.Tensor) -> torch.Tensor:
        """Return the layer's output as (n, channels, h, w); tokens form a square grid.

        Raises: `UserError` for an output that is not such a grid.
        """
        if self.form == "tokens" and output.ndim == 3:
            maps = output[:, self.prefix :].transpose(1, 2)
            side = math.isqrt(maps.shape[2])
            if side**2 == maps.shape[2] > 0:
                return maps.unflatten(2, (side, side))
        if self.form != "tokens" and output.ndim == 4:
            return output if self.form == "maps" else output.permute(0, 3, 1, 2)
        raise UserError(f"layer {self.name}: its output {tuple(output.shape)} is not a feature map (n, channels, h, w)")

    def with_maps(self, output: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (k, channels, h, w) in the layer's form, with the prefix tokens of `output` (1 or k, …)."""
        if self.form == "maps":
            return maps
        if self.form == "maps_last":
            return maps.permute(0, 2, 3, 1)
        prefix = output[:, : self.prefix].expand(len(maps), -1, -1)
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], 1)


def find_layers(
    model: nn.Module, architecture: Architecture, size: int, names: Sequence[str] = (), flag: str = "--layer"
) -> tuple[Layer, ...]:
    """Return the layers called `names`, else the architecture's own target layer.

    That is the family's row in `CAM_LAYERS`, else the last layer of a probe pass whose output is a grid on most of
    whose cells the class scores depend: in a CNN the last feature map before pooling, in a transformer that reads its
    class token the last normalisation before the attention of the last block. (The output of the last block is a trap:
    nothing reads its image tokens, and their gradients are exactly 0.)

    Raises: `UserError` for an unknown name or a layer whose output is not a grid, both after `flag`, or a model without
        any grid.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            hint = did_you_mean(name, filter(None, modules), count=4, cutoff=0.3)
            raise UserError(f"{flag} {name}: {architecture.name} has no such layer{hint}")
    bare = architecture.name.removeprefix("timm/")
    rows = (find(model) for family, find in CAM_LAYERS.items() if bare.startswith(family))
    row = next((row for row in rows if row.name in modules), CamLayer(""))
    if row.name and set(names) <= {row.name}:
        return (Layer(row.name, relu_after=row.relu_after),)
    probed = probe(model, architecture, size)
    reached = [name for name, (_, reach) in probed.items() if reach > 0.5]
    for name in names:
        if name not in probed:
            raise UserError(
                f"{flag} {name}: its output is not a feature map (n, channels, h, w) or (n, tokens, channels); "
                f"the last layers that give one: {', '.join(reached[-4:]) or 'none'}"
            )
        if not probed[name][1]:
            raise UserError(
                f"{flag} {name}: no class score depends on its image tokens (only the class token is read after it); "
                "choose an earlier layer"
            )
    if not names and not reached:
        raise UserError(f"{architecture.name} has no layer whose output is a feature map of more than one cell")
    layers = [probed[name][0] for name in names or reached[-1:]]
    return tuple(replace(layer, relu_after=row.relu_after and layer.name == row.name) for layer in layers)


def probe(model: nn.Module, architecture: Architecture, size: int) -> dict[str, tuple[Layer, float]]:
    """Find every module whose output is a grid, in the order of a forward pass of one noise image.

    Returns: by name the layer, and the share of its cells on which the input of the classifier head depends. (The
    scores would not do: in a new head of zeros they depend on nothing.)
    """
    outputs: dict[str, torch.Tensor] = {}
    read: list[torch.Tensor] = []

    def record(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        outputs.pop(name, None)  # a module that is used twice counts where it is used last
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.requires_grad:
            outputs[name] = output

    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), ExitStack() as hooks:
        for name, module in _candidates(model):
            hooks.enter_context(module.register_forward_hook(partial(record, name)))
        if architecture.head:
            head = model.get_submodule(architecture.head)
            hooks.enter_context(head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])))
        scores = model(noise_image(model, architecture, size).requires_grad_())
        seen = read[-1] if read else scores
        weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(1)).to(seen)
        gradients = torch.autograd.grad(seen, list(outputs.values()), weights, allow_unused=True)
    probed: dict[str, tuple[Layer, float]] = {}
    grids: list[tuple[int, int]] = []
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        if layer := _layer_of(name, output, size, grids):
            if layer.form == "maps":
                grids.append((output.shape[2], output.shape[3]))
            # NaN counts as a dependence too
            reach = 0.0 if gradient is None else float((layer.to_maps(gradient) != 0).any(1).float().mean())
            probed[name] = layer, reach
    return probed


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that may be a target: no pooling, permuted axes or linear layers, nothing inside attention.

    Tensors inside attention modules (heads, windows, weights) only look like grids.
    """
    kinds = {name: type(module).__name__.lower() for name, module in model.named_modules() if name}
    attentions = tuple(f"{name}." for name, kind in kinds.items() if "attention" in kind)
    for name, kind in kinds.items():
        module = model.get_submodule(name)
        if not ("pool" in kind or kind == "permute" or name.startswith(attentions) or isinstance(module, _NO_FEATURES)):
            yield name, module


def noise_image(model: nn.Module, architecture: Architecture, size: int) -> torch.Tensor:
    """Return an image of noise (1, channels, size, size), the same in every call, on the model's device."""
    noise = torch.randn(1, len(architecture.mean), size, size, generator=torch.Generator().manual_seed(0))
    return noise.to(next(model.parameters()))


def _layer_of(name: str, output: torch.Tensor, size: int, grids: list[tuple[int, int]]) -> Layer | None:
    """Return the form of the output for one square image, given the `grids` of earlier maps; None if it is no grid."""
    match tuple(output.shape):  # a first axis other than 1 holds windows
        case (1, _, height, width) if height == width and 1 < height <= size:
            return Layer(name)
        case (1, height, width, _) if height == width and 1 < height <= size:
            return Layer(name, "maps_last")
        case (1, tokens, _) if split := token_prefix(tokens, grids):
            return Layer(name, "tokens", split[0])
    return None


def token_prefix(tokens: int, grids: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int]] | None:
    """Return how many of `tokens` precede those of a grid, and the grid: the last of `grids` that fits, or a square.

    None if neither fits.
    """
    square = int(tokens**0.5)
    for height, width in [*reversed(grids), (square, square)]:
        if height * width > 1 and 0 <= tokens - height * width <= min(MOST_PREFIX_TOKENS, height * width - 1):
            return tokens - height * width, (height, width)
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep `model` in evaluation mode, its parameters without gradients, while the block runs; then restore it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in trainable:  # else the graph would include every parameter
            parameter.requires_grad_(False)
        model.eval()
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def class_count(model: nn.Module, architecture: Architecture) -> int:
    """Return the number of class scores. Raises: `UserError`, for a model that takes other images or returns none."""
    try:
        with torch.no_grad(), evaluating(model):
            scores = model(noise_image(model, architecture, architecture.size))
    except (RuntimeError, ValueError, AssertionError) as error:
        problem = f"it cannot take an image of {len(architecture.mean)} channels (as mean and std have) and this size"
        raise UserError(f"{architecture.name}: {problem}: {str(error).splitlines()[0]}") from error
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        raise UserError(f"{architecture.name}: it returns no class scores (n, classes); wrap it in a module that does")
    return scores.shape[1]


def layer_names(model: nn.Module, layers: Layers) -> list[str]:
    """Return the dotted names of layers given by name or as modules.

    Raises: `UserError` for a module of another model.
    """
    given = [] if layers is None else [layers] if isinstance(layers, (str, nn.Module)) else layers
    names = {module: name for name, module in model.named_modules()}
    if any(isinstance(layer, nn.Module) and layer not in names for layer in given):
        raise UserError("layers: not a module of this model; pass its name or the module itself")
    return [layer if isinstance(layer, str) else names[layer] for layer in given]
