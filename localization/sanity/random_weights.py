"""Copies of a trained model with random weights from the head downwards, which show how a map depends on training.

This is cascading randomisation (Adebayo 2018, Sanity Checks for Saliency Maps, section 4.1).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from localization.methods.layers import evaluating
from pretrained_models import Architecture

STAGES = 5
MOST_IMAGES = 32  # used to estimate the statistics of batch normalisation


def randomised(
    model: nn.Module, architecture: Architecture, inputs: torch.Tensor, stage: int = STAGES, seed: int = 0
) -> nn.Module:
    """Return a copy of `model`, in evaluation mode, whose first `stage` stages (see `stages`) have random weights.

    Each parameter is redrawn by one rule:

    - kernels and matrices (a `weight` with two or more axes): N(0, 1 / fan-in), where the fan-in is the number of
      weights of one output (LeCun 1998); biases: 0;
    - all others (scales of normalisation and of layers, class tokens, position embeddings, relative position biases,
      temperatures): the trained values, shuffled, since they have no fan-in and another scale might kill the signal.

    The modules' own `reset_parameters` would not do: the biases that it draws drown the signal in a network without
    normalisation. VGG16's features were then the same for every image, and on a dead network every method passes. Nor
    would the constructors' initialisation: torchvision's ViT starts with a head of zeros, timm's ResNets with blocks of
    zeros.

    Batch normalisation in those stages takes its statistics from `inputs`, since with those of the trained weights
    activations would vanish or explode. The result is a function of the seed, and a parameter that is random at two
    stages has the same values at both.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device. The first image determines the
            order of the modules, and at most 32 the statistics.
        stage: 0 gives a plain copy, `STAGES` an entirely random model.
    """
    with torch.inference_mode(False), torch.no_grad():
        inputs = inputs[:MOST_IMAGES].clone()
        fresh = copy.deepcopy(model).eval()
        names = [name for group in stages(fresh, architecture, inputs)[:stage] for name in group]
        numbers = {id(parameter): number for number, parameter in enumerate(fresh.parameters())}
        for name in names:
            for key, parameter in fresh.get_submodule(name).named_parameters(recurse=False):
                generator = np.random.default_rng((seed, numbers[id(parameter)]))
                parameter.copy_(_random_values(key, parameter, generator))
        _estimate_statistics(fresh, names, inputs)
    return fresh


def stages(model: nn.Module, architecture: Architecture, inputs: torch.Tensor) -> list[list[str]]:
    """Return the names of the modules that own parameters, in at most `STAGES` stages from the head downwards.

    The first stage is the classifier head alone. The others hold about equally many modules, in the reverse of the
    order in which a forward pass of the first image enters them. A module that is entered twice counts where it is
    entered last. A module that is never entered because its parent reads its weights (the projection in
    nn.MultiheadAttention) counts with that parent.
    """
    entered: list[str] = []
    with ExitStack() as hooks, evaluating(model), torch.inference_mode(False), torch.no_grad():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, name=name: entered.append(name)))
        model(inputs[:1].clone())
    last_entry = {name: place for place, name in enumerate(entered)}

    def position(name: str) -> int:
        return last_entry[name] if name in last_entry else position(name.rpartition(".")[0])

    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    head = [name for name in names if name == architecture.head]
    rest = sorted((name for name in names if name not in head), key=position, reverse=True)
    groups = [head, *(group.tolist() for group in np.array_split(rest, STAGES - 1))]
    return [group for group in groups if group]


def _random_values(key: str, trained: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Return new values for a parameter that its module calls `key`, drawn on the CPU: the same on every device."""
    if key.endswith("weight") and trained.ndim >= 2:
        values = generator.standard_normal(trained.shape, np.float32) / np.sqrt(trained[0].numel(), dtype=np.float32)
        return torch.from_numpy(values).to(trained)
    if key.endswith("bias") and trained.ndim == 1:
        return torch.zeros_like(trained)
    shuffled = torch.from_numpy(generator.permutation(trained.numel())).to(trained.device)
    return trained.flatten()[shuffled].view_as(trained)


def _estimate_statistics(model: nn.Module, names: Iterable[str], inputs: torch.Tensor) -> None:
    """Set the batch normalisations among `names` to the mean and variance of their inputs in a pass of `inputs`."""
    modules = map(model.get_submodule, names)
    normalisations = [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not normalisations:
        return
    if len(inputs) == 1:  # after pooling, a channel would have a single value and no variance
        inputs = torch.cat([inputs, inputs.flip(-1)])
    for module in normalisations:
        module.reset_running_stats()
        module.momentum = None  # the plain mean instead of a moving one
        module.train()
    model(inputs)
    model.eval()
