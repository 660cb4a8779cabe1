"""The methods, one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from localization.methods import attention, gradients, perturbation, pixels
from localization.methods.explanation import Explanation
from utils import UserError


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
