"""The methods: one row each, and what a row may ask for, computed once for a batch however many methods need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from localization import attention, gradients, perturbation, pixels
from localization.cut import CutPass, cut_pass
from localization.layers import Layer, evaluating, find_layers
from pretrained_models import Architecture
from utils import UserError, autocast


@dataclass(frozen=True)
class Budget:
    """What the costly methods may spend on a picture.

    Attributes:
        max_channels: of the layer, that Score-CAM and Ablation-CAM try: those with the largest Grad-CAM weights.
        steps: of the path of integrated gradients.
        samples: noisy copies of SmoothGrad.
        cells: of occlusion's grid along each side.
        batch: pictures in one forward pass.
    """

    max_channels: int = 64
    steps: int = 24
    samples: int = 16
    cells: int = 14
    batch: int = 32


@dataclass
class Explanation:
    """A batch of pictures under one model: what a method may ask for. Nothing is computed before it is asked for.

    Attributes:
        model: in evaluation mode, its parameters without gradients.
        layers: the target layers.
        inputs: (n, channels, height, width) float32, normalised, on the model's device.
        black: (channels,) the normalised value of a black pixel.
        wanted: (n,) int64 classes to explain; None: the predicted ones.
        precision: of the autocast.
        seed: of the methods that draw noise.
    """

    model: nn.Module
    layers: Sequence[Layer]
    inputs: torch.Tensor
    black: torch.Tensor
    wanted: torch.Tensor | None = None
    precision: str = "fp32"
    budget: Budget = field(default_factory=Budget)
    seed: int = 0

    @cached_property
    def cut(self) -> CutPass:
        """The layers' activations and gradients, the scores and the targets: one forward and one backward pass."""
        return cut_pass(self.model, self.layers, self.inputs, self.wanted, self.precision)

    @cached_property
    def scores(self) -> torch.Tensor:
        """(n, classes) float32, before the softmax."""
        return self.cut.scores if self.layers else self.predict(self.inputs)

    @cached_property
    def targets(self) -> torch.Tensor:
        """(n,) int64, the class explained in each picture."""
        return self.scores.argmax(1) if self.wanted is None else self.wanted.to(self.inputs.device)

    @cached_property
    def attention(self) -> attention.AttentionPass:
        """Both rollouts' maps: one recorded pass serves the two."""
        return attention.attention_pass(self.model, self.inputs, self.targets, self.precision)

    @cached_property
    def grad_cam(self) -> torch.Tensor:
        """(n, h, w): guided Grad-CAM's other half."""
        return _from_features(gradients.grad_cam)(self)

    def predict(self, inputs: torch.Tensor) -> torch.Tensor:
        """The scores (k, classes) float32 of any pictures, `budget.batch` of them at a time, without gradients."""
        with torch.inference_mode(), evaluating(self.model), autocast(inputs.device, self.precision):
            return torch.cat([self.model(part).float() for part in inputs.split(self.budget.batch)])

    def score_gradients(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """∂score/∂input of any pictures (k, channels, height, width) for targets (k,), `budget.batch` at a time."""
        found = []
        for part, wanted in zip(inputs.split(self.budget.batch), targets.split(self.budget.batch), strict=True):
            with torch.inference_mode(False), torch.enable_grad(), evaluating(self.model):
                leaf = (part.clone() if part.is_inference() else part.detach()).requires_grad_()
                with autocast(leaf.device, self.precision):
                    scores = self.model(leaf).float()
                found.append(torch.autograd.grad(scores.gather(1, wanted.clone()[:, None]).sum(), leaf)[0].float())
        return torch.cat(found)


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        title: as people call it.
        function: of an `Explanation`: maps (n, h, w) float32 ≥ 0, not rescaled, on the method's own grid.
        needs: `layer`, `attention` (from every token to every other), `relu`: what an architecture must have for it.
        knows_class: whether the map depends on the class explained.
        costly: whether a map takes more than a few passes of its picture.
        known_failure: what published sanity checks hold against it; empty where none is known.
    """

    title: str
    function: Callable[[Explanation], torch.Tensor]
    needs: tuple[str, ...] = ()
    knows_class: bool = True
    costly: bool = False
    known_failure: str = ""


def _from_features(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable:
    """A method from a layer's activations and gradients."""

    def maps(explanation: Explanation) -> torch.Tensor:
        return gradients.mean_of_layers([function(f.activations, f.gradients) for f in explanation.cut.features])

    return maps


_ADEBAYO = "guided backpropagation keeps its edges when the weights are random (Adebayo 2018)"
METHODS: dict[str, Method] = {
    "gradcam": Method("Grad-CAM", _from_features(gradients.grad_cam), ("layer",)),
    "gradcam++": Method("Grad-CAM++", _from_features(gradients.grad_cam_plus_plus), ("layer",)),
    "hirescam": Method("HiResCAM", _from_features(gradients.hires_cam), ("layer",)),
    "xgradcam": Method("XGrad-CAM", _from_features(gradients.x_grad_cam), ("layer",)),
    "layercam": Method("LayerCAM", _from_features(gradients.layer_cam), ("layer",)),
    "eigencam": Method("Eigen-CAM", _from_features(gradients.eigen_cam), ("layer",), knows_class=False),
    "eigengradcam": Method("Eigen-Grad-CAM", _from_features(gradients.eigen_grad_cam), ("layer",)),
    "scorecam": Method("Score-CAM", perturbation.score_cam, ("layer",), costly=True),
    "ablationcam": Method("Ablation-CAM", perturbation.ablation_cam, ("layer",), costly=True),
    "occlusion": Method("Occlusion", perturbation.occlusion, costly=True),
    "integrated_gradients": Method("Integrated gradients", pixels.integrated_gradients, costly=True),
    "smoothgrad": Method("SmoothGrad", pixels.smooth_grad, costly=True),
    "guided_gradcam": Method("Guided Grad-CAM", pixels.guided_grad_cam, ("layer", "relu"), known_failure=_ADEBAYO),
    "rollout": Method("Attention rollout", attention.rollout, ("attention",), knows_class=False),
    "gradient_rollout": Method("Gradient rollout", attention.gradient_rollout, ("attention",)),
}


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


def method_name(word: str) -> str:
    """The table's key of a method's name however it is written (`Grad-CAM`, `grad_cam`). Raises: `UserError`."""
    import difflib

    def bare(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum() or c == "+").replace("plusplus", "++")

    known = {bare(name): key for key, method in METHODS.items() for name in (key, method.title)}
    if bare(word) in known:
        return known[bare(word)]
    near = difflib.get_close_matches(bare(word), known, n=2, cutoff=0.5)
    hint = f" (did you mean {', '.join(dict.fromkeys(known[n] for n in near))}?)" if near else ""
    raise UserError(f"--method {word.strip()}: no such method{hint}; there are {', '.join(METHODS)}, or all")
