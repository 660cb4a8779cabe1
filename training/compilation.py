"""torch.compile for the steps of a training; checkpoints, validation and maps stay with the module itself."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from training.loop import Learner
from utils import UserError, autocast, log

LONG_RUN = 20_000  # steps from which `auto` compiles: it takes a minute or so, and saves a part of each step


def training_forward(learner: Learner, steps: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward pass of training steps: the model itself, or a compiled one that shares its parameters.

    `train.compile` is `on`, `off`, or `auto`: on a GPU, in runs of `LONG_RUN` steps or more. It is compiled here, by a
    step that leaves weights, statistics and random numbers as they were, for whole micro-batches. Others, an epoch's
    last, go through the model: each shape would be compiled for itself.

    Args:
        steps: of the whole run, so that a run that is resumed decides as it did at first.

    Raises: `UserError` where compiling fails and `train.compile=on`; `auto` warns and does without.
    """
    model, device, mode = learner.model, learner.device, learner.config.train.compile
    if mode == "off" or (mode == "auto" and (device.type != "cuda" or steps < LONG_RUN)):
        return model
    log.info("compiling the training step (train.compile) ...")
    shape = learner.input_shape
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
        if mode == "on":
            raise UserError(f"{reason}; set train.compile=off") from None
        log.warning(f"{reason}: going on without")
        return model
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
    return lambda inputs: compiled(inputs) if inputs.shape == shape else model(inputs)
