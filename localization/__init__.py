"""Class activation maps: computing them, scoring them against masks, and drawing them.

`Explainer` is imported when it is first used: the table of methods is needed without torch.
"""

from __future__ import annotations

from typing import Any

from localization.methods.table import METHODS

__all__ = ["METHODS", "Explainer"]


def __getattr__(name: str) -> Any:
    if name != "Explainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from localization.explainer import Explainer

    return Explainer
