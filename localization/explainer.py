"""`Explainer`: a model, its target layers, and the methods that it allows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from itertools import repeat

import numpy as np
import torch
from torch import nn

from localization.methods import attention, pixels
from localization.methods.explanation import Explanation, Settings
from localization.methods.layers import Layer, evaluating, find_layers, noise_image
from localization.methods.table import METHODS, method_name
from pretrained_models import Architecture, head_name
from utils import UserError

Layers = str | nn.Module | Sequence[str | nn.Module] | None


class Explainer:
    """Class activation maps of one image classifier.

    Parameters
    ----------
    model : nn.Module
        Returns class scores (n, classes) for images (n, channels, size, size). It is not changed: its weights, its
        mode and its hooks stay as they are.
    mean, std : sequence of float
        Normalisation of each channel for pixels in [0, 1]; their length is the number of channels.
    size : int
        Side of the model's input in pixels.
    layers : str, nn.Module or a sequence of these, optional
        Target layers, by name or as modules of `model`; the maps of several are averaged. Default: the layer that
        `pretrained_models` names for the architecture, else the last feature map before pooling.
    settings : Settings, optional
        Precision, seed and cost of the methods.
    architecture : Architecture, optional
        Architecture of `pretrained_models` that the model was built as, for its name and head. Default: both are found
        in the model.

    Attributes
    ----------
    layers : tuple of Layer
        The target layers; empty if the model has no feature map.
    available : list of str
        The keys of `METHODS` that the model allows.

    Raises
    ------
    UserError
        If the model does not return class scores, or if a layer does not exist, gives no feature map or does not
        influence the scores.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from localization import Explainer
    >>> _ = torch.manual_seed(0)
    >>> head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), *head)
    >>> explainer = Explainer(model, mean=(0.5,), std=(0.25,), size=33)
    >>> [layer.name for layer in explainer.layers]
    ['1']
    >>> images = torch.rand(8, 33, 33)
    >>> explainer.maps(images, method="gradcam", target=1).shape
    torch.Size([8, 16, 16])
    >>> "rollout" in explainer.available
    False
    >>> Explainer(model, mean=(0.5,), std=(0.25,), size=33, layers=model[0]).layers[0].name
    '0'
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        layers: Layers = None,
        settings: Settings | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        self.model, self.size, self.settings = model, size, settings or Settings()
        self.mean, self.std = (torch.as_tensor(values, dtype=torch.float32) for values in (mean, std))
        bare = Architecture(name=type(model).__name__, head="", size=size, mean=tuple(mean), std=tuple(std))
        self.class_count = _class_count(model, bare)
        with suppress(UserError):  # no linear layer or convolution gives the scores
            bare = replace(bare, head=head_name(model, self.class_count))
        self.architecture = architecture or bare
        self.missing: dict[str, str] = {}  # what a method may need and the model lacks → why
        self.layers: tuple[Layer, ...] = ()
        names = _layer_names(model, layers)
        try:
            self.layers = find_layers(model, self.architecture, size, names)
        except UserError as reason:
            if names:
                raise
            self.missing["layer"] = str(reason)
        for need, find_reason in (("attention", attention.why_not), ("relu", pixels.why_not)):
            if reason := find_reason(model, self.architecture, size):
                self.missing[need] = reason

    @classmethod
    def from_architecture(
        cls,
        model: nn.Module,
        architecture: Architecture,
        size: int,
        layers: Layers = None,
        settings: Settings | None = None,
    ) -> Explainer:
        """Return the explainer of a model that was built as `architecture`, with its normalisation."""
        normalisation = {"mean": architecture.mean, "std": architecture.std}
        return cls(model, size=size, layers=layers, settings=settings, architecture=architecture, **normalisation)

    def with_model(self, model: nn.Module) -> Explainer:
        """Return the same explainer of another model with the same modules, for instance with random weights."""
        other = copy(self)
        other.model = model
        return other

    def why_not(self, method: str) -> str:
        """Return why `method`, a key of `METHODS`, is not available for this model; empty if it is."""
        return next((self.missing[need] for need in METHODS[method].needs if need in self.missing), "")

    @property
    def available(self) -> list[str]:
        """The keys of `METHODS` that are available for this model, in the table's order."""
        return [name for name in METHODS if not self.why_not(name)]

    def choose(self, names: str) -> list[str]:
        """Return the methods of a list such as `gradcam,Layer-CAM`, in its order; `all` means `available`.

        Raises
        ------
        UserError
            If a method is unknown or not available for this model.
        """
        if names.strip().lower() == "all":
            return self.available
        return list(dict.fromkeys(self._available_name(word) for word in names.split(",")))

    def _available_name(self, word: str) -> str:
        name = method_name(word)
        if reason := self.why_not(name):
            problem = f"not available for {self.architecture.name}: {reason}"
            raise UserError(f"--method {name}: {problem}; choose from {', '.join(self.available)}")
        return name

    def explain(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> Explanation:
        """Return the explanation of a batch, from which `METHODS[name].function` computes the maps of a method.

        Methods that are given the same explanation share its passes through the model.

        Parameters
        ----------
        inputs : torch.Tensor
            (n, channels, size, size) float32, normalised, on the model's device.
        targets : torch.Tensor, optional
            (n,) int64, the classes to explain. Default: the predicted ones.
        """
        black = (-self.mean / self.std).to(inputs.device)
        return Explanation(
            model=self.model, layers=self.layers, inputs=inputs, black=black, requested=targets, settings=self.settings
        )

    def maps(
        self, images: torch.Tensor | np.ndarray, method: str = "gradcam", target: int | Sequence[int] | None = None
    ) -> torch.Tensor:
        """Return the maps of one method.

        Parameters
        ----------
        images : torch.Tensor or numpy.ndarray
            (n, size, size) or (n, channels, size, size), uint8 or floats in [0, 1]; normalised here. Grey images fit a
            model of any number of channels.
        method : str
            A name in `METHODS`, in any spelling.
        target : int or sequence of int, optional
            The class to explain, or one for each image. Default: the predicted class of each image.

        Returns
        -------
        torch.Tensor
            (n, h, w) float32 ≥ 0 on the CPU, on the method's own grid, not rescaled.

        Raises
        ------
        UserError
            If the method is unknown or not available for this model, or if the images or targets do not fit it.
        """
        function, inputs = METHODS[self._available_name(method)].function, self._normalised(images)
        batch, targets = self.settings.batch, repeat(None)
        if target is not None:
            targets = self._targets(target, len(inputs)).to(inputs.device).split(batch)
        parts = zip(inputs.split(batch), targets, strict=False)
        return torch.cat([function(self.explain(*part)).cpu() for part in parts])

    def _normalised(self, images: torch.Tensor | np.ndarray) -> torch.Tensor:
        values = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        values = values[:, None] if values.ndim == 3 else values
        channels, side = len(self.mean), self.size
        if values.ndim != 4 or not len(values) or values.shape[1:] not in ((1, side, side), (channels, side, side)):
            shapes = f"(n, {side}, {side}) or (n, {channels}, {side}, {side})"
            raise UserError(f"images: the shape is {tuple(images.shape)}; pass {shapes}")
        if values.dtype == torch.uint8:
            values = values / 255
        elif not values.is_floating_point() or values.min() < 0 or values.max() > 1:
            raise UserError("images: neither uint8 nor floats in [0, 1]; pass normalised inputs to `explain`")
        like = next(self.model.parameters())
        mean, std = (value.to(like)[:, None, None] for value in (self.mean, self.std))
        return (values.to(like) - mean) / std

    def _targets(self, target: int | Sequence[int], count: int) -> torch.Tensor:
        targets = torch.as_tensor(target).long()
        targets = targets.expand(count) if targets.ndim == 0 else targets
        if targets.shape != (count,) or targets.min() < 0 or targets.max() >= self.class_count:
            classes = f"from 0 to {self.class_count - 1}"
            raise UserError(f"target {target}: pass one class {classes}, or one for each of the {count} images")
        return targets


def _class_count(model: nn.Module, architecture: Architecture) -> int:
    with torch.no_grad(), evaluating(model):
        scores = model(noise_image(model, architecture, architecture.size))
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        raise UserError(f"{architecture.name}: it returns no class scores (n, classes); wrap it in a module that does")
    return scores.shape[1]


def _layer_names(model: nn.Module, layers: Layers) -> list[str]:
    given = [] if layers is None else [layers] if isinstance(layers, (str, nn.Module)) else layers
    names = {module: name for name, module in model.named_modules()}
    if any(isinstance(layer, nn.Module) and layer not in names for layer in given):
        raise UserError("layers: not a module of this model; pass its name or the module itself")
    return [layer if isinstance(layer, str) else names[layer] for layer in given]
