"""Which layer a class activation map is taken from, and how that layer's output lies on the picture.

A layer's output is a grid in one of three forms, and none of them needs a word from the user: `maps` (n, channels, h,
w) of CNNs, `maps_last` (n, h, w, channels) of Swin, `tokens` (n, prefix + h·w, channels) of ViT, where the prefix holds
the class token, the distillation token and the registers.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pretrained_models import CAM_LAYERS, Architecture, CamLayer
from utils import UserError

MOST_PREFIX_TOKENS = 16
_NO_FEATURES = (nn.Dropout, nn.Identity, nn.Flatten, nn.Softmax)


@dataclass(frozen=True)
class Layer:
    """A layer and how its output is a grid.

    Attributes:
        name: dotted name of the module.
        form: `maps`, `maps_last` or `tokens`.
        prefix: tokens before those of the picture.
        relu_after: a functional ReLU follows it in `forward` (DenseNet): the rectified map is meant.
    """

    name: str
    form: str = "maps"
    prefix: int = 0
    relu_after: bool = False

    def to_maps(self, output: torch.Tensor, picture: tuple[int, int]) -> torch.Tensor:
        """The layer's output as (n, channels, h, w). `picture`, the input's (height, width), decides a tokens' grid.

        Raises: `UserError` for an output that is no such grid.
        """
        if self.form == "maps" and output.ndim == 4:
            return output
        if self.form == "maps_last" and output.ndim == 4:
            return output.permute(0, 3, 1, 2)
        if self.form == "tokens" and output.ndim == 3:
            grid = _token_grid(output.shape[1] - self.prefix, picture)
            if grid is not None:
                return output[:, self.prefix :].transpose(1, 2).unflatten(2, grid)
        raise UserError(f"--layer {self.name}: its output {tuple(output.shape)} is no feature map (n, channels, h, w)")

    def with_maps(self, output: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """`maps` (k, channels, h, w) in the form of `output`, (1 or k, …), which gives the prefix tokens."""
        if self.form == "maps":
            return maps
        if self.form == "maps_last":
            return maps.permute(0, 2, 3, 1)
        prefix = output[:, : self.prefix].expand(len(maps), -1, -1)
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], 1)


def _token_grid(count: int, picture: tuple[int, int]) -> tuple[int, int] | None:
    """The grid (h, w) of `count` tokens with the picture's aspect; None where no grid has it."""
    height, width = picture
    if count < 1:
        return None
    rows = round((count * height / width) ** 0.5)
    return (rows, count // rows) if rows and count % rows == 0 else None


def find_layers(
    model: nn.Module, architecture: Architecture, size: int, names: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """The layers called `names`, else the architecture's own target layer.

    That is the family's row in `CAM_LAYERS`, else the last layer, in the order of a probe pass, whose output is a grid
    on most of whose positions the class scores depend: the last feature map before pooling in a CNN, the last
    normalisation before the attention of the last block in a transformer that reads its class token. (Behind it the
    picture's tokens no longer matter and their gradients are exactly 0: the trap of the last block's output.)

    Raises: `UserError` for a name that is not there, a layer whose output is no grid, or a model without any grid.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, [m for m in modules if m], n=4, cutoff=0.3)
            raise UserError(
                f"--layer {name}: {architecture.name} has no such layer; near it: {', '.join(near) or 'none'}"
            )
    row = _from_table(model, architecture)
    if row is not None and set(names) <= {row.name}:
        return (Layer(row.name, relu_after=row.relu_after),)
    found = probe(model, architecture, size)
    for name in names:
        if name not in found:
            usable = [n for n, (_, reach) in found.items() if reach > 0.5][-4:]
            raise UserError(
                f"--layer {name}: its output is no feature map (n, channels, h, w) or (n, tokens, channels); "
                f"the last ones that are: {', '.join(usable) or 'none'}"
            )
        if found[name][1] == 0:
            raise UserError(
                f"--layer {name}: no class score depends on the picture's part of its output (behind it only the class "
                "token is read); choose an earlier layer"
            )
    if names:
        return tuple(
            replace(found[n][0], relu_after=row is not None and n == row.name and row.relu_after) for n in names
        )
    reached = [layer for layer, reach in found.values() if reach > 0.5]
    if not reached:
        raise UserError(f"{architecture.name} has no layer whose output is a feature map of more than one cell")
    return (reached[-1],)


def _from_table(model: nn.Module, architecture: Architecture) -> CamLayer | None:
    bare = architecture.name.removeprefix("timm/")
    for family, layer in CAM_LAYERS.items():
        if bare.startswith(family):
            found = layer(model)
            if found.name in dict(model.named_modules()):
                return found
    return None


def probe(model: nn.Module, architecture: Architecture, size: int) -> dict[str, tuple[Layer, float]]:
    """Every module whose output is a grid, in the order of a forward pass of one picture of noise.

    Returns: by name the layer, and the share of its cells on which what the classifier head reads depends.
    """
    outputs: dict[str, torch.Tensor] = {}
    read: list[torch.Tensor] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            outputs.pop(name, None)  # a module that is used again counts where it is used last
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.requires_grad:
                outputs[name] = output

        return hook

    modules = [(n, m) for n, m in model.named_modules() if n and not isinstance(m, _NO_FEATURES) and not _inner(m)]
    handles = [module.register_forward_hook(note(name)) for name, module in modules]
    handles.append(model.get_submodule(architecture.head).register_forward_pre_hook(lambda _, i: read.append(i[0])))
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    try:
        with evaluating(model), torch.inference_mode(False), torch.enable_grad():
            picture = torch.randn(1, len(architecture.mean), size, size, generator=generator)
            model(picture.to(parameter.device, parameter.dtype).requires_grad_())
            # not the scores: a new head may be zeros, and then nothing depends on anything
            weights = torch.randn(read[-1].shape, generator=generator).to(read[-1])
            gradients = torch.autograd.grad((read[-1] * weights).sum(), list(outputs.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, tuple[Layer, float]] = {}
    grids: list[tuple[int, int]] = []
    inside = _attention_names(model)
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        layer = _form(name, output, size, grids)
        if layer is None or any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if layer.form == "maps":
            grids.append((output.shape[2], output.shape[3]))
        if gradient is None:
            found[name] = layer, 0.0
        else:
            reach = (layer.to_maps(gradient, (size, size)) != 0).any(1)  # what is not a number counts too
            found[name] = layer, float(reach.float().mean())
    return found


def _inner(module: nn.Module) -> bool:
    """Modules whose output is no feature map of the network's own: pools, axes exchanged, linear layers in blocks."""
    kind = type(module).__name__.lower()
    return "pool" in kind or kind == "permute" or isinstance(module, nn.Linear)


def _attention_names(model: nn.Module) -> list[str]:
    """Attention modules: what lies inside of them (heads, windows, weights) only looks like a grid."""
    return [name for name, module in model.named_modules() if name and "attention" in type(module).__name__.lower()]


def _form(name: str, output: torch.Tensor, size: int, grids: list[tuple[int, int]]) -> Layer | None:
    """How the output for one square picture is a grid; `grids` are those of the maps before it. None: it is none."""
    if len(output) != 1:
        return None  # windows lie along the first axis
    if output.ndim == 4:
        _, a, b, c = output.shape
        if b == c and 1 < b <= size:
            return Layer(name)
        return Layer(name, "maps_last") if a == b and 1 < a <= size else None
    if output.ndim != 3:
        return None
    found = token_prefix(output.shape[1], grids)
    return found and Layer(name, "tokens", found[0])


def token_prefix(tokens: int, grids: Sequence[tuple[int, int]]) -> tuple[int, tuple[int, int]] | None:
    """How many of `tokens` come before those of a grid, and the grid: the last of `grids` that fits, else a square."""
    square = int(tokens**0.5)
    for height, width in [*reversed(grids), (square, square)]:
        if height * width > 1 and 0 <= tokens - height * width <= min(MOST_PREFIX_TOKENS, height * width - 1):
            return tokens - height * width, (height, width)
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode and without gradients of its parameters, while the block runs; then as it was."""
    learning = [p for p in model.parameters() if p.requires_grad]
    training = [module for module in model.modules() if module.training]
    try:
        for parameter in learning:  # else the graph would hold the gradients of every parameter as well
            parameter.requires_grad_(False)
        model.eval()
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
