"""The methods, one row each. Nothing heavy is imported before a map is computed: `--help` lists the names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from utils import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

    from localization.methods.explanation import Explanation

_ADEBAYO = "guided backpropagation keeps its edges when the weights are random (Adebayo 2018)"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        title: its name in the literature.
        function: maps (n, h, w) float32 ≥ 0 of an `Explanation`, not rescaled, on the method's own grid.
        needs: what a model must have: `layer` (a feature map), `attention` (between all tokens), `relu`.
        knows_class: whether the map depends on the class explained.
        costly: whether a map takes more than a few forward passes.
        known_failure: a published failure in sanity checks; empty if none is known.
    """

    title: str
    function: Callable[[Explanation], torch.Tensor]
    needs: tuple[str, ...] = ()
    knows_class: bool = True
    costly: bool = False
    known_failure: str = ""


def _function(module: str, name: str) -> Callable:
    return getattr(import_module(f"localization.methods.{module}"), name)


def _on_layers(name: str) -> Callable[[Explanation], torch.Tensor]:
    """Return the method that a function of activations and gradients in `gradients.py` defines."""

    def maps(explanation: Explanation) -> torch.Tensor:
        function, mean_of_layers = (_function("gradients", each) for each in (name, "mean_of_layers"))
        return mean_of_layers([function(f.activations, f.gradients) for f in explanation.cut.features])

    return maps


def _on_inputs(module: str, name: str) -> Callable[[Explanation], torch.Tensor]:
    """Return the method that a function of an `Explanation` in `module` defines."""
    return lambda explanation: _function(module, name)(explanation)


METHODS: dict[str, Method] = {
    "gradcam": Method(title="Grad-CAM", function=_on_layers("grad_cam"), needs=("layer",)),
    "gradcam++": Method(title="Grad-CAM++", function=_on_layers("grad_cam_plus_plus"), needs=("layer",)),
    "hirescam": Method(title="HiResCAM", function=_on_layers("hires_cam"), needs=("layer",)),
    "xgradcam": Method(title="XGrad-CAM", function=_on_layers("x_grad_cam"), needs=("layer",)),
    "layercam": Method(title="LayerCAM", function=_on_layers("layer_cam"), needs=("layer",)),
    "eigencam": Method(title="Eigen-CAM", function=_on_layers("eigen_cam"), needs=("layer",), knows_class=False),
    "eigengradcam": Method(title="Eigen-Grad-CAM", function=_on_layers("eigen_grad_cam"), needs=("layer",)),
    "scorecam": Method(
        title="Score-CAM", function=_on_inputs("perturbation", "score_cam"), needs=("layer",), costly=True
    ),
    "ablationcam": Method(
        title="Ablation-CAM", function=_on_inputs("perturbation", "ablation_cam"), needs=("layer",), costly=True
    ),
    "occlusion": Method(title="Occlusion", function=_on_inputs("perturbation", "occlusion"), costly=True),
    "integrated_gradients": Method(
        title="Integrated gradients", function=_on_inputs("pixels", "integrated_gradients"), costly=True
    ),
    "smoothgrad": Method(title="SmoothGrad", function=_on_inputs("pixels", "smooth_grad"), costly=True),
    "guided_gradcam": Method(
        title="Guided Grad-CAM",
        function=_on_inputs("pixels", "guided_grad_cam"),
        needs=("layer", "relu"),
        known_failure=_ADEBAYO,
    ),
    "rollout": Method(
        title="Attention rollout",
        function=lambda explanation: explanation.attention.rollout,
        needs=("attention",),
        knows_class=False,
    ),
    "gradient_rollout": Method(
        title="Gradient rollout",
        function=lambda explanation: explanation.attention.gradient_rollout,
        needs=("attention",),
    ),
}


def method_name(word: str) -> str:
    """Return the key in `METHODS` of a method's name in any spelling (`Grad-CAM`, `grad_cam`). Raises: `UserError`."""

    def bare(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum() or c == "+").replace("plusplus", "++")

    keys = {bare(name): key for key, method in METHODS.items() for name in (key, method.title)}
    if bare(word) in keys:
        return keys[bare(word)]
    hint = did_you_mean(bare(word), keys, count=2, cutoff=0.5)
    raise UserError(f"--method {word.strip()}: unknown method{hint}; choose from {', '.join(METHODS)}, or all")
