"""torch.compile for the steps of a training; checkpoints, validation and maps stay with the module itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from utils import UserError, log

LONG_RUN = 20_000  # steps from which `auto` compiles: it takes about a minute, and saves a part of each step


def training_forward(
    model: nn.Module, wanted: str, device: torch.device, batch: int, steps: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The forward pass of training steps: `model` itself, or a compiled one that shares its parameters and buffers.

    Args:
        wanted: `on`, `off`, or `auto`: on a GPU, in runs of `LONG_RUN` steps or more.
        batch: images per step; a smaller batch, an epoch's last, goes through `model`: it would be compiled for itself.
        steps: that are still to be trained.

    Where it cannot be compiled, `auto` says so and goes on without, and `on` raises a `UserError`.
    """
    if wanted == "off" or (wanted == "auto" and (device.type != "cuda" or steps < LONG_RUN)):
        return model
    compiled: nn.Module | None = torch.compile(model, dynamic=False)
    log.info("compiling the training step (train.compile) ...")

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        nonlocal compiled
        if compiled is None or len(inputs) != batch:
            return model(inputs)
        try:
            return compiled(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = f"train.compile: {type(model).__name__} cannot be compiled here ({str(error).splitlines()[0]})"
            if wanted == "on":
                raise UserError(f"{reason}; set train.compile=off") from None
            log.warning(f"WARNING: {reason}: going on without")
            compiled = None
            return model(inputs)

    return forward
