"""torch.compile for training steps. Checkpoints, validation and maps use the uncompiled model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from training.loop import Learner
from utils import UserError, autocast, log

LONG_RUN = 20_000  # `auto` compiles runs of at least this many steps: compiling takes about a minute


def training_forward(learner: Learner, steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward pass for training steps: the model, or a compiled version that shares its parameters.

    `train.compile` is `on`, `off` or `auto`, which compiles runs of at least `LONG_RUN` steps on a GPU. One step
    compiles the model for a full micro-batch and leaves weights, statistics and random numbers unchanged. Smaller
    batches, at the end of an epoch, use the uncompiled model, because every shape would be compiled separately.

    Args:
        steps: in the whole run, so that a resumed run decides as the original did.

    Raises: `UserError` if `train.compile=on` and compiling fails; `auto` warns and returns the model.
    """
    model, device, train = learner.model, learner.device, learner.config.train
    if train.compile == "off" or (train.compile == "auto" and (device.type != "cuda" or steps < LONG_RUN)):
        return model
    log.info("compiling the training step (train.compile) ...")
    shape = (learner.ranks.micro_batch(train), len(learner.architecture.mean), learner.size, learner.size)
    compiled = torch.compile(model.train(), dynamic=False)
    before = copy.deepcopy(model.state_dict())
    try:
        with torch.random.fork_rng():
            inputs = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
            with autocast(device, learner.precision):
                scores = compiled(inputs)
            scores.float().sum().backward()
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
        reason = f"train.compile: {type(model).__name__} cannot be compiled here ({str(error).splitlines()[0]})"
        if train.compile == "on":
            raise UserError(f"{reason}; set train.compile=off") from None
        log.warning(f"{reason}; training continues uncompiled")
        return model
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    return lambda inputs: compiled(inputs) if inputs.shape == shape else model(inputs)
