"""Copies of a trained model whose weights are random, from the head downwards: what a map owes to what was learned.

Cascading randomisation (Adebayo 2018, Sanity Checks for Saliency Maps, section 4.1).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from localization.methods.layers import evaluating
from pretrained_models import Architecture

STAGES = 5
MOST_IMAGES = 32  # from which the statistics of batch normalisation are estimated


def randomised(
    model: nn.Module, architecture: Architecture, inputs: torch.Tensor, stage: int = STAGES, seed: int = 0
) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose weights are random in its first `stage` stages (`stages`).

    The rule, parameter by parameter:

    - kernels and matrices (a `weight` of two or more axes): N(0, 1 / fan-in), fan-in the weights of one output, as
      LeCun 1998; biases: 0;
    - all else (scales of normalisation and of layers, class tokens, position embeddings, relative position biases,
      temperatures): the trained values, shuffled, as they have no fan-in, and only their own size keeps the signal
      alive.

    Not the modules' own `reset_parameters`: the biases that those draw drown the signal in a network without
    normalisation. VGG16's features were then the same for every image, and against a dead network every method
    passes. Nor the constructor's own initialisation, which makes torchvision's ViT a head of zeros and timm's ResNets
    blocks of zeros.

    Batch normalisation in those stages takes its statistics from the images, since those of the trained weights do
    not fit others: activations would vanish or explode. Everything is a function of the seed, and a parameter that is
    random in two stages is the same in both.

    Args:
        inputs: (n, channels, height, width) float32, normalised, on the model's device: images for the order of the
            modules (the first) and for the statistics (at most 32).
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


def fully_randomised(model: nn.Module, architecture: Architecture, inputs: torch.Tensor, seed: int = 0) -> nn.Module:
    """A copy in which nothing is left of what was learned: the control of a map's scores. See `randomised`."""
    return randomised(model, architecture, inputs, STAGES, seed)


def stages(model: nn.Module, architecture: Architecture, inputs: torch.Tensor, count: int = STAGES) -> list[list[str]]:
    """Names of the modules with parameters of their own, in at most `count` stages from the head downwards.

    The first stage is the classifier head alone; the others hold about equally many modules, in the order in which a
    forward pass of the first image enters them, the last first. A module that is entered again counts where it is
    entered last; one that is never entered, as its parent reads its weights (the projection in nn.MultiheadAttention),
    counts with that parent.
    """
    entered: dict[str, int] = {}
    count_entered = itertools.count()

    def note(name: str) -> Callable:
        def hook(_module: nn.Module, _inputs: object) -> None:
            entered[name] = next(count_entered)

        return hook

    with ExitStack() as hooks, evaluating(model), torch.inference_mode(False), torch.no_grad():
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(note(name)))
        model(inputs[:1].clone())

    def place(name: str) -> int:
        while name not in entered:
            name = name.rpartition(".")[0]
        return entered[name]

    own = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    head = [name for name in own if name == architecture.head]
    rest = sorted((name for name in own if name not in head), key=place, reverse=True)
    groups = [head, *(list(map(str, group)) for group in np.array_split(np.array(rest), count - 1))]
    return [group for group in groups if group]


def _random_values(key: str, trained: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """New values for a parameter that its module calls `key`. Drawn on the CPU: every device has the same ones."""
    if key.endswith("weight") and trained.ndim >= 2:
        values = generator.standard_normal(trained.shape, np.float32) / np.sqrt(trained[0].numel(), dtype=np.float32)
        return torch.from_numpy(values).to(trained)
    if key.endswith("bias") and trained.ndim == 1:
        return torch.zeros_like(trained)
    shuffled = torch.from_numpy(generator.permutation(trained.numel())).to(trained.device)
    return trained.flatten()[shuffled].view_as(trained)


def _estimate_statistics(model: nn.Module, names: Iterable[str], inputs: torch.Tensor) -> None:
    """Give the batch normalisations among `names` the mean and variance that they see on `inputs`."""
    modules: Sequence[nn.Module] = [model.get_submodule(name) for name in names]
    normalisations = [m for m in modules if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not normalisations:
        return
    if len(inputs) == 1:  # a normalisation behind the pooling would see one value, which has no variance
        inputs = torch.cat([inputs, inputs.flip(-1)])
    momenta = [module.momentum for module in normalisations]
    for module in normalisations:
        module.reset_running_stats()
        module.momentum = None  # the plain mean, not a moving one
        module.train()
    model(inputs)
    for module, momentum in zip(normalisations, momenta, strict=True):
        module.momentum = momentum
        module.eval()
