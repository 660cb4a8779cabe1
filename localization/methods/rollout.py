"""The two rollouts of attention, as methods of an explanation."""

from __future__ import annotations

import torch

from localization.methods.explanation import Explanation


def rollout(explanation: Explanation) -> torch.Tensor:
    """Attention rollout (Abnar and Zuidema 2020, section 3): the maps (n, h, w) of `rolled_out`; class-agnostic."""
    return explanation.attention.rollout


def gradient_rollout(explanation: Explanation) -> torch.Tensor:
    """Gradient rollout (Chefer 2021): the maps (n, h, w) of `relevance` for the class explained."""
    return explanation.attention.gradient_rollout
