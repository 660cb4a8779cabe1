"""Attention rollout and gradient rollout of transformers, both from one recorded pass.

The attention of every block is recorded while the unmodified model runs: a `TorchFunctionMode`, which affects only its
own thread, intercepts the three calls with which torchvision's and timm's models compute attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from localization.methods.layers import evaluating, noise_image, token_prefix
from pretrained_models import Architecture
from utils import autocast

_SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)
_CONVOLUTION = (F.conv2d, torch.conv2d)
_PART_BYTES = 2**27  # of recorded attention at a time; the gradients need as much again


@dataclass(kw_only=True)
class RecordedAttention:
    """The attention over N tokens of every block in one pass, and the gradients with respect to it.

    Attributes:
        weights: for each block (n, heads, N, N) float32; the last axis sums to 1. If the classifier pools the tokens by
            attention (SigLIP), the last entry is (n, heads, 1, N).
        gradients: the same shapes: ∂score/∂weights for the target class of each image.
        readout: (n, rows of the last block), sums to 1: equal weights on the tokens that the classifier reads.
        prefix: number of tokens before those of the image.
        grid: (h, w) of the image's tokens.
    """

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]
    readout: torch.Tensor
    prefix: int
    grid: tuple[int, int]


@dataclass
class AttentionPass:
    """The maps (n, h, w) of both methods; the attention itself would be too large to keep for a whole batch."""

    rollout: torch.Tensor
    gradient_rollout: torch.Tensor


def rolled_out(weights: Iterable[torch.Tensor], readout: torch.Tensor) -> torch.Tensor:
    """Return how much of each token the tokens that the classifier reads contain (n, N) (Abnar and Zuidema 2020).

    The heads are averaged, attention and residual connection count equally (½A + ½I), and the blocks are multiplied.
    Pooling by attention has no residual connection. For `weights` and `readout` see `RecordedAttention`.
    """
    product = None
    for block in weights:
        mean = block.mean(1)
        if mean.shape[1] == mean.shape[2]:
            mean = (mean + torch.eye(mean.shape[2], device=mean.device)) / 2
        product = mean if product is None else mean @ product
    return (readout[:, None] @ product)[:, 0]


def relevance(
    weights: Iterable[torch.Tensor], gradients: Iterable[torch.Tensor], readout: torch.Tensor
) -> torch.Tensor:
    """Return the relevance of each token (n, N) for the target (Chefer 2021, Generic attention-model explainability).

    Ā is the mean over the heads of ReLU(∇A ⊙ A) (eq. 5). R starts as I and becomes R + Ā R in each block (eq. 6). The
    result is the rows of R − I of the tokens that the classifier reads.
    """
    total = start = None
    for block, gradient in zip(weights, gradients, strict=True):
        mean = F.relu(block * gradient).mean(1)
        if total is None:
            total = start = torch.eye(mean.shape[2], device=mean.device).expand(len(mean), -1, -1)
        total = total + mean @ total if mean.shape[1] == mean.shape[2] else mean @ total
    if total.shape[1] == total.shape[2]:
        total = total - start
    return (readout[:, None] @ total)[:, 0]


def attention_pass(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, precision: str = "fp32"
) -> AttentionPass:
    """Return the maps of `inputs` (n, channels, height, width) for `targets` (n,), in parts that fit in memory."""
    parts: list[list[torch.Tensor]] = []
    done, count = 0, 1
    while done < len(inputs):
        part = slice(done, done + count)
        recorded = record_attention(model, inputs[part], targets[part], precision)
        weights, readout = recorded.weights, recorded.readout
        rows = rolled_out(weights, readout), relevance(weights, recorded.gradients, readout)
        parts.append([tokens[:, recorded.prefix :].unflatten(1, recorded.grid) for tokens in rows])
        done += len(readout)
        count = max(1, _PART_BYTES * len(readout) // sum(4 * block.numel() for block in weights))
    return AttentionPass(*(torch.cat(maps) for maps in zip(*parts, strict=True)))


def record_attention(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, precision: str = "fp32"
) -> RecordedAttention:
    """Record one forward and one backward pass of a model for which `why_not` gives no reason.

    It also works inside a caller's `no_grad` or `inference_mode`, and leaves the model unchanged.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain.
        precision: autocast precision; the attention itself is always computed in float32.
    """
    recorder, scores = _pass_with_graph(model, inputs, precision)
    # NaN propagates even through a head of zeros, but only to tokens on which the scores depend: the rows that it
    # reaches in the last block are the tokens that the classifier reads.
    poison = torch.full_like(scores, torch.nan)
    (reached,) = torch.autograd.grad(scores, recorder.weights[-1], poison, retain_graph=True)
    read = _by_head(reached, len(inputs)).isnan().any(3).any(1).float()
    selected = F.one_hot(targets.to(scores.device), scores.shape[1]).to(scores)
    gradients = torch.autograd.grad(scores, recorder.weights, selected)
    prefix, grid = recorder.grid_of(recorder.shapes[-1][-1])
    weights, gradients = (
        [_by_head(block.detach(), len(inputs)).float() for block in blocks] for blocks in (recorder.weights, gradients)
    )
    readout = read / read.sum(1, keepdim=True)
    return RecordedAttention(weights=weights, gradients=gradients, readout=readout, prefix=prefix, grid=grid)


def why_not(model: nn.Module, architecture: Architecture, size: int) -> str:
    """Return why attention cannot be rolled out in this model, found by a pass of one noise image; empty if it can."""
    recorder, _ = _pass_with_graph(model, noise_image(model, architecture, size))
    shapes, weights = recorder.shapes, recorder.weights
    if not shapes:
        return "it has no attention between tokens"
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        return "its attention is limited to windows or groups of tokens, so no token sees the whole image"
    rows, tokens = shapes[0][2:]
    if rows == tokens and not recorder.grid_of(tokens):
        return f"its attention is over {tokens} items that are not positions of a grid (such as channels)"
    pooled_by_attention = len(shapes) > 1 and shapes[-1][2:] == (1, tokens)
    sizes = dict.fromkeys(shape[2:] for shape in (shapes[:-1] if pooled_by_attention else shapes))
    if list(sizes) != [(tokens, tokens)]:
        pairs = ", then ".join(f"{rows} to {columns}" for rows, columns in sizes)
        return f"its blocks do not all attend between the same tokens ({pairs})"
    if recorder.mixed:
        return "convolutions mix its tokens between attention blocks"
    if any(_independent(before, after) for before, after in pairwise(weights)):
        return "its blocks hold parallel attention branches, which cannot be multiplied"
    return ""


def _pass_with_graph(model: nn.Module, inputs: torch.Tensor, precision: str = "fp32") -> tuple[_Recorder, torch.Tensor]:
    """Return the recorder and the scores (n, classes) of a pass whose graph holds the attention of every block."""
    recorder = _Recorder()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), autocast(inputs.device, precision):
        leaf = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
        with recorder:
            return recorder, model(leaf).float()


def _independent(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Return whether `after` does not depend on `before`, as in parallel branches."""
    seeds = torch.zeros_like(after)
    return torch.autograd.grad(after, before, seeds, retain_graph=True, allow_unused=True)[0] is None


def _by_head(block: torch.Tensor, count: int) -> torch.Tensor:
    """Return attention (n, heads, N, N) or, from nn.MultiheadAttention, (n · heads, N, N) as (n, heads, N, N)."""
    return block if block.ndim == 4 else block.unflatten(0, (count, -1))


class _Recorder(TorchFunctionMode):
    """Records attention while a model runs, whichever of the three calls computes it.

    Attributes:
        shapes: of every attention; (n, heads, rows, columns) if it is between tokens.
        weights: the tensors in the graph, (n · heads, N, N) from nn.MultiheadAttention.
        grids: (h, w) of the outputs of all convolutions, the patch embedding's among them.
        mixed: whether a convolution over more than one position came between two attentions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.weights: list[torch.Tensor] = []
        self.grids: list[tuple[int, int]] = []
        self.mixed = self._convolved = False

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._explicit(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._with_weights(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX and (result.ndim > 3 or (result.ndim == 3 and result.shape[1] == result.shape[2])):
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, result.ndim - 1):
                self._note(result, result.shape)
        elif func in _CONVOLUTION:
            self.grids.append((result.shape[-2], result.shape[-1]))
            kernel = (kwargs["weight"] if "weight" in kwargs else args[1]).shape[2:]
            self._convolved = self._convolved or (max(kernel) > 1 and bool(self.shapes))
        return result

    def _explicit(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *_dropout_and_causal: Any,
        scale: float | None = None,
        **_others: Any,
    ) -> torch.Tensor:
        """Compute `scaled_dot_product_attention` with explicit weights; image classifiers are never causal."""
        with torch.autocast(query.device.type, enabled=False):
            similarity = query.float() @ key.float().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                similarity = similarity.masked_fill(~attn_mask, -torch.inf)
            elif attn_mask is not None:
                similarity = similarity + attn_mask.float()
            weights = similarity.softmax(-1)
            self._note(weights, weights.shape)
            return (weights @ value.float()).to(value.dtype)

    def _with_weights(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple:
        """Run nn.MultiheadAttention with its weights returned: they are a view of the tensor in the graph."""
        output, weights = func(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})
        self._note(weights._base, weights.shape)
        return output, weights.mean(1) if kwargs.get("average_attn_weights", True) else weights

    def grid_of(self, tokens: int) -> tuple[int, tuple[int, int]] | None:
        """Return `token_prefix` of `tokens`; None if convolutions ran and none of them has that grid."""
        split = token_prefix(tokens, self.grids)
        return None if split and self.grids and split[1] not in self.grids else split

    def _note(self, weights: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.mixed = self.mixed or self._convolved
        self.shapes.append(tuple(shape))
        self.weights.append(weights)
