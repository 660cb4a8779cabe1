"""The methods, one row each. Nothing heavy is imported before a map is computed: `--help` lists the names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any

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


def _function(name: str) -> Callable:
    """Return the function that `name`, `MODULE.FUNCTION`, has in this room."""
    module, _, function = name.partition(".")
    return getattr(import_module(f"localization.methods.{module}"), function)


def _method(title: str, name: str, *needs: str, **attributes: Any) -> Method:
    """Return the row of a function of an `Explanation` in one of this room's modules."""
    return Method(title=title, function=lambda explanation: _function(name)(explanation), needs=needs, **attributes)


def _cam(title: str, name: str, **attributes: Any) -> Method:
    """Return the row of a function in `gradients.py` of a layer's activations and gradients."""

    def maps(explanation: Explanation) -> torch.Tensor:
        layers = [_function(f"gradients.{name}")(f.activations, f.gradients) for f in explanation.cut.features]
        return _function("gradients.mean_of_layers")(layers)

    return Method(title=title, function=maps, needs=("layer",), **attributes)


def _rollout(title: str, name: str, **attributes: Any) -> Method:
    """Return the row of a field of `AttentionPass`."""
    return Method(title=title, function=attrgetter(f"attention.{name}"), needs=("attention",), **attributes)


METHODS: dict[str, Method] = {
    "gradcam": _cam("Grad-CAM", "grad_cam"),
    "gradcam++": _cam("Grad-CAM++", "grad_cam_plus_plus"),
    "hirescam": _cam("HiResCAM", "hires_cam"),
    "xgradcam": _cam("XGrad-CAM", "x_grad_cam"),
    "layercam": _cam("LayerCAM", "layer_cam"),
    "eigencam": _cam("Eigen-CAM", "eigen_cam", knows_class=False),
    "eigengradcam": _cam("Eigen-Grad-CAM", "eigen_grad_cam"),
    "scorecam": _method("Score-CAM", "perturbation.score_cam", "layer", costly=True),
    "ablationcam": _method("Ablation-CAM", "perturbation.ablation_cam", "layer", costly=True),
    "occlusion": _method("Occlusion", "perturbation.occlusion", costly=True),
    "integrated_gradients": _method("Integrated gradients", "pixels.integrated_gradients", costly=True),
    "smoothgrad": _method("SmoothGrad", "pixels.smooth_grad", costly=True),
    "guided_gradcam": _method("Guided Grad-CAM", "pixels.guided_grad_cam", "layer", "relu", known_failure=_ADEBAYO),
    "rollout": _rollout("Attention rollout", "rollout", knows_class=False),
    "gradient_rollout": _rollout("Gradient rollout", "gradient_rollout"),
}


def method_name(word: str, flag: str = "--method", others: str = ", or all") -> str:
    """Return the key in `METHODS` of a method's name in any spelling (`Grad-CAM`, `grad_cam`).

    Raises: `UserError` that names `flag`, the methods and the `others` that the caller takes.
    """

    def bare(name: str) -> str:
        return "".join(c for c in name.lower() if c.isalnum() or c == "+").replace("plusplus", "++")

    keys = {bare(name): key for key, method in METHODS.items() for name in (key, method.title)}
    if bare(word) in keys:
        return keys[bare(word)]
    hint = did_you_mean(bare(word), keys, count=2, cutoff=0.5)
    raise UserError(f"{flag} {word.strip()}: unknown method{hint}; choose from {', '.join(METHODS)}{others}")
