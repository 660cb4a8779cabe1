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
from localization.methods.layers import Layer, Layers, class_count, find_layers, layer_names
from localization.methods.table import METHODS, method_name
from pretrained_models import Architecture, head_name
from utils import UserError


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
        If the model does not take images of this size and number of channels, or does not return class scores; or if a
        layer does not exist, gives no feature map or does not influence the scores.

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
    >>> explainer.maps(torch.rand(8, 33, 33), method="gradcam", target=1).shape
    torch.Size([8, 16, 16])
    >>> Explainer(model, mean=(0.5,), std=(0.25,), size=33, layers=model[0]).layers[0].name
    '0'
    """

    layers_word, method_word = "layers", "method"  # what errors call these arguments

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
        self.class_count = class_count(model, bare)
        with suppress(UserError):  # no linear layer or convolution gives the scores
            bare = replace(bare, head=head_name(model, self.class_count))
        self.architecture = architecture or bare
        self.missing: dict[str, str] = {}  # what a method may need and the model lacks → why
        self.layers: tuple[Layer, ...] = ()
        names = layer_names(model, layers)
        try:
            self.layers = find_layers(model, self.architecture, size, names, self.layers_word)
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
        """Return the explainer of a model that was built as `architecture`, with its normalisation.

        Parameters
        ----------
        model : nn.Module
            A model that `pretrained_models` built, or one with the same modules.
        architecture : Architecture
            Its name, head, mean and standard deviation.
        size : int
            Side of the model's input in pixels.
        layers, settings : optional
            The same as those of `Explainer`.

        Returns
        -------
        Explainer

        Raises
        ------
        UserError
            As `Explainer` does.

        Examples
        --------
        >>> from localization import Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> Explainer.from_architecture(model, architecture, 64).layers[0].name
        'layer4'
        """
        normalisation = {"mean": architecture.mean, "std": architecture.std}
        return cls(model, size=size, layers=layers, settings=settings, architecture=architecture, **normalisation)

    def with_model(self, model: nn.Module) -> Explainer:
        """Return the same explainer of another model, for instance one with random weights.

        Parameters
        ----------
        model : nn.Module
            A model with the same modules; this is not checked.

        Returns
        -------
        Explainer
            A new explainer; this one keeps its model.

        Examples
        --------
        >>> from localization import Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> explainer = Explainer.from_architecture(model, architecture, 64)
        >>> other = explainer.with_model(build_model("resnet18", 3)[0])
        >>> other.layers == explainer.layers, other.model is model
        (True, False)
        """
        other = copy(self)
        other.model = model
        return other

    def why_not(self, method: str) -> str:
        """Return why a method is not available for this model.

        Parameters
        ----------
        method : str
            A key of `METHODS`.

        Returns
        -------
        str
            The reason; empty if the method is available.

        Examples
        --------
        >>> from localization import Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> explainer = Explainer.from_architecture(model, architecture, 64)
        >>> explainer.why_not("gradcam")
        ''
        >>> explainer.why_not("rollout")
        'it has no attention between tokens'
        """
        return next((self.missing[need] for need in METHODS[method].needs if need in self.missing), "")

    @property
    def available(self) -> list[str]:
        """The methods that are available for this model.

        Returns
        -------
        list of str
            Keys of `METHODS`, in the table's order.
        """
        return [name for name in METHODS if not self.why_not(name)]

    def choose(self, names: str) -> list[str]:
        """Return the methods of a list.

        Parameters
        ----------
        names : str
            Methods in any spelling, separated by commas, such as `gradcam,Layer-CAM`; `all` means `available`.

        Returns
        -------
        list of str
            Keys of `METHODS`, in the order given, each once.

        Raises
        ------
        UserError
            If a method is unknown or not available for this model.

        Examples
        --------
        >>> from localization import Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> explainer = Explainer.from_architecture(model, architecture, 64)
        >>> explainer.choose("Layer-CAM,gradcam")
        ['layercam', 'gradcam']
        """
        if names.strip().lower() == "all":
            return self.available
        return list(dict.fromkeys(self._available_name(word) for word in names.split(",")))

    def _available_name(self, word: str, others: str = ", or all") -> str:
        name = method_name(word, self.method_word, others)
        if reason := self.why_not(name):
            problem = f"not available for {self.architecture.name}: {reason}"
            raise UserError(f"{self.method_word} {name}: {problem}; choose from {', '.join(self.available)}")
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

        Returns
        -------
        Explanation
            Nothing is computed yet: each pass through the model runs when a method first needs it.

        Examples
        --------
        >>> import torch
        >>> from localization import METHODS, Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> explainer = Explainer.from_architecture(model, architecture, 64)
        >>> explanation = explainer.explain(torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))
        >>> [METHODS[name].function(explanation).shape for name in ("gradcam", "layercam")]
        [torch.Size([2, 2, 2]), torch.Size([2, 2, 2])]
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

        Examples
        --------
        >>> import torch
        >>> from localization import Explainer
        >>> from pretrained_models import build_model
        >>> model, architecture, _ = build_model("resnet18", 3)
        >>> explainer = Explainer.from_architecture(model, architecture, 64)
        >>> maps = explainer.maps(torch.rand(2, 64, 64), method="Layer-CAM", target=[0, 2])
        >>> maps.shape, maps.dtype
        (torch.Size([2, 2, 2]), torch.float32)
        """
        function, inputs = METHODS[self._available_name(method, "")].function, self._normalised(images)
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
        with suppress(TypeError, ValueError, RuntimeError):  # torch's, for text and nested lists
            targets = torch.as_tensor(target)
            targets = targets.expand(count) if targets.ndim == 0 else targets
            if targets.shape == (count,) and all(number in range(self.class_count) for number in targets.tolist()):
                return targets.long()
        classes = f"from 0 to {self.class_count - 1}"
        raise UserError(f"target {target}: pass one class {classes}, or one for each of the {count} images")
