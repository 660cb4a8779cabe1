"""What transformers attend to: attention rollout and gradient rollout, from one recorded pass.

The attention of every block is recorded while the model runs as it is: a `TorchFunctionMode` (one thread's own) sees
the three calls by which torchvision's and timm's models compute it. Nothing is copied, patched or hooked.
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
    """The attention of every block in one pass, N tokens, and what the scores owe to it.

    Attributes:
        weights: of each block (n, heads, N, N) float32; a row, over its last axis, sums to 1. Where the classifier
            pools the tokens by attention (SigLIP), the last is (n, heads, 1, N).
        gradients: the same shapes, of each image's target score with respect to them.
        readout: (n, rows of the last block), sums to 1: the tokens that the classifier reads, all of them alike.
        prefix: tokens before those of the image.
        grid: (h, w) of the image's tokens.
        scores: (n, classes) float32, before the softmax.
    """

    weights: list[torch.Tensor]
    gradients: list[torch.Tensor]
    readout: torch.Tensor
    prefix: int
    grid: tuple[int, int]
    scores: torch.Tensor

    def maps(self, rows: torch.Tensor) -> torch.Tensor:
        """The image's part of (n, N) as (n, h, w)."""
        return rows[:, self.prefix :].unflatten(1, self.grid).float()


@dataclass
class AttentionPass:
    """Both methods' maps, each (n, h, w): the attention itself is too large to keep for a whole batch."""

    rollout: torch.Tensor
    gradient_rollout: torch.Tensor


def rolled_out(weights: Iterable[torch.Tensor], readout: torch.Tensor) -> torch.Tensor:
    """How much of each token (n, N) the read ones hold, after Abnar and Zuidema 2020.

    The heads are averaged, the residual connection counts as much as the attention, ½A + ½I, and the blocks are
    multiplied. Pooling by attention has no residual connection. The `weights` are those of `RecordedAttention`.
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
    """The relevance of each token (n, N) for the target, after Chefer 2021 (Generic attention-model explainability).

    Ā = mean over the heads of ReLU(∇A ⊙ A) (eq. 5); R ← R + Ā R from R = I (eq. 6); what the read tokens hold without
    the identity that R began with.
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
    """Both methods' maps of `inputs` (n, channels, height, width) for `targets` (n,), in parts that fit in memory."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    done, count = 0, 1
    while done < len(inputs):
        part = slice(done, done + count)
        recorded = record_attention(model, inputs[part], targets[part], precision)
        rows = rolled_out(recorded.weights, recorded.readout)
        relevant = relevance(recorded.weights, recorded.gradients, recorded.readout)
        found.append((recorded.maps(rows), recorded.maps(relevant)))
        done += len(rows)
        count = max(1, _PART_BYTES * len(rows) // sum(4 * block.numel() for block in recorded.weights))
    return AttentionPass(*(torch.cat(maps) for maps in zip(*found, strict=True)))


def record_attention(
    model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, precision: str = "fp32"
) -> RecordedAttention:
    """One forward and one backward pass of an architecture that `why_not` says nothing against.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        targets: (n,) int64 classes to explain.
        precision: of the autocast; the attention itself is computed in float32.

    Works inside callers' `no_grad` and `inference_mode`; the model is left as it was found.
    """
    recorder, scores = _pass_with_graph(model, inputs, precision)
    # NaN passes through zeros, those of a new head too, and reaches no token that has no part in the scores: the rows
    # that it reaches in the last block are the tokens that the classifier reads.
    poison = torch.full_like(scores, torch.nan)
    (reached,) = torch.autograd.grad(scores, recorder.weights[-1], poison, retain_graph=True)
    read = _by_head(reached, len(inputs)).isnan().any(3).any(1).float()
    wanted = F.one_hot(targets.to(scores.device), scores.shape[1]).to(scores)
    gradients = torch.autograd.grad(scores, recorder.weights, wanted)
    prefix, grid = recorder.grid_of(recorder.shapes[-1][-1])
    return RecordedAttention(
        weights=[_by_head(block.detach(), len(inputs)).float() for block in recorder.weights],
        gradients=[_by_head(block, len(inputs)).float() for block in gradients],
        readout=read / read.sum(1, keepdim=True),
        prefix=prefix,
        grid=grid,
        scores=scores.detach(),
    )


def why_not(model: nn.Module, architecture: Architecture, size: int) -> str:
    """Why the architecture has no attention to roll out; empty where it has. Found by passes of one noise image."""
    recorder = _Recorder(keep=False)
    image = noise_image(model, architecture, size)
    with torch.no_grad(), evaluating(model), recorder:
        model(image)
    shapes = recorder.shapes
    if not shapes:
        return "it has no attention between tokens"
    if any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
        return "its attention lies in windows or groups of tokens: none sees the whole image"
    _, _, rows, columns = shapes[0]
    if rows == columns and not recorder.grid_of(rows):
        return f"its attention is over {rows} items that are not the places of a grid (channels, for instance)"
    pooled_by_attention = len(shapes) > 1 and shapes[-1][2] == 1
    for _, _, rows, columns in shapes[:-1] if pooled_by_attention else shapes:
        if rows != columns:
            return f"its tokens do not all attend to each other (in one block, {rows} of them to {columns})"
    counts = list(dict.fromkeys(shape[3] for shape in shapes))
    if len(counts) > 1:
        return f"its blocks do not all attend over the same tokens ({', then '.join(map(str, counts))} of them)"
    if recorder.mixed:
        return "convolutions mix its tokens between one attention and the next"
    weights = _pass_with_graph(model, image)[0].weights
    if any(_apart(before, after) for before, after in pairwise(weights)):
        return "several attentions stand side by side in its blocks, which have no product"
    return ""


def _pass_with_graph(model: nn.Module, inputs: torch.Tensor, precision: str = "fp32") -> tuple[_Recorder, torch.Tensor]:
    """A forward pass whose graph holds the attention of every block; the scores are (n, classes) float32."""
    recorder = _Recorder(keep=True)
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), autocast(inputs.device, precision):
        leaf = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
        with recorder:
            return recorder, model(leaf).float()


def _apart(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether `after` is no function of `before`: they are not of one block and a later one."""
    seeds = torch.zeros_like(after)
    return torch.autograd.grad(after, before, seeds, retain_graph=True, allow_unused=True)[0] is None


def _by_head(block: torch.Tensor, images: int) -> torch.Tensor:
    """(n · heads, N, N), as nn.MultiheadAttention computes it, or (n, heads, N, N), as the latter."""
    return block if block.ndim == 4 else block.unflatten(0, (images, -1))


class _Recorder(TorchFunctionMode):
    """Records attention while a model runs, in the three ways in which models compute it.

    Attributes:
        shapes: of each attention, (n, heads, rows, columns) where it is between tokens.
        weights: the same tensors, each the very one in the graph, (n · heads, N, N) from nn.MultiheadAttention; empty
            unless they are to be kept.
        grids: (h, w) of the convolutions' outputs: the patch embedding's among them.
        mixed: whether a convolution over more than one place came between two of them.
    """

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.shapes: list[tuple[int, ...]] = []
        self.weights: list[torch.Tensor] = []
        self.grids: list[tuple[int, int]] = []
        self.mixed = self._convolved = False

    def __torch_function__(
        self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
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
        *_dropout_and_causality: Any,
        scale: float | None = None,
        **_others: Any,
    ) -> torch.Tensor:
        """What `scaled_dot_product_attention` computes, weights written out; no classifier of images is causal."""
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
        """nn.MultiheadAttention, made to tell its weights: those that it returns are a view of those that it used."""
        asked = kwargs.get("need_weights", True)
        output, weights = func(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})
        self._note(weights._base, weights.shape)
        if not asked:
            return output, None
        return output, weights.mean(1) if kwargs.get("average_attn_weights", True) else weights

    def grid_of(self, tokens: int) -> tuple[int, tuple[int, int]] | None:
        """`token_prefix` of `tokens`; None where its grid is not the output of one of the convolutions, if any ran."""
        found = token_prefix(tokens, self.grids)
        return None if found and self.grids and found[1] not in self.grids else found

    def _note(self, weights: torch.Tensor, shape: tuple[int, ...]) -> None:
        self.mixed = self.mixed or self._convolved
        self.shapes.append(tuple(shape))
        if self.keep:
            self.weights.append(weights)
