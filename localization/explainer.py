"""One trained model and the methods that its architecture can have."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import nn

from localization.methods import attention, pixels
from localization.methods.explanation import Budget, Explanation
from localization.methods.layers import Layer, find_layers
from localization.methods.table import METHODS, method_name
from pretrained_models import Architecture
from utils import UserError


class Explainer:
    """One trained model and the methods that its architecture can have.

    Args:
        model: as trained; it is left as it is found.
        size: side in pixels of the model's input.
        layer_names: the target layers; none: the architecture's own.

    Raises: `UserError` for a layer that is not there or gives no feature map.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        size: int,
        precision: str = "fp32",
        layer_names: Sequence[str] = (),
        budget: Budget | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.architecture, self.size = model, architecture, size
        self.precision, self.budget, self.seed = precision, budget or Budget(), seed
        self.lacks: dict[str, str] = {}  # what a method may need and this architecture has not, and why
        self.layers: tuple[Layer, ...] = ()
        try:
            self.layers = find_layers(model, architecture, size, layer_names)
        except UserError as reason:
            if layer_names:
                raise
            self.lacks["layer"] = str(reason)
        for need, find in (("attention", attention.why_not), ("relu", pixels.why_not)):
            reason = find(model, architecture, size)
            if reason:
                self.lacks[need] = reason
        self.black = -torch.tensor(architecture.mean) / torch.tensor(architecture.std)

    def of(self, model: nn.Module) -> Explainer:
        """The same for another model of this architecture: one with fresh weights."""
        other = copy(self)
        other.model = model
        return other

    def why_not(self, method: str) -> str:
        """Why the architecture cannot have the method; empty where it can."""
        return next((self.lacks[need] for need in METHODS[method].needs if need in self.lacks), "")

    @property
    def available(self) -> list[str]:
        """The methods that the architecture can have, in the table's order."""
        return [name for name in METHODS if not self.why_not(name)]

    def choose(self, wanted: str) -> list[str]:
        """The methods that `a,b,c` or `all` names, in that order. `all` means those that the architecture can have.

        Raises: `UserError` for a name that is none, or a method that the architecture cannot have.
        """
        if wanted.strip().lower() == "all":
            return self.available
        chosen = []
        for word in wanted.split(","):
            name = method_name(word)
            if self.why_not(name):
                raise UserError(
                    f"--method {name}: {self.architecture.name} cannot have it: {self.why_not(name)}; it can have "
                    + ", ".join(self.available)
                )
            if name not in chosen:
                chosen.append(name)
        return chosen

    def explain(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> Explanation:
        """The batch `inputs` (n, channels, size, size) for the classes `targets` (n,), or the predicted ones."""
        black = self.black.to(inputs.device)
        return Explanation(self.model, self.layers, inputs, black, targets, self.precision, self.budget, self.seed)
