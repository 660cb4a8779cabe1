"""How a training can end early."""

from __future__ import annotations


class Pruned(Exception):
    """Raised by the `report` callback of `train` to end a training that is not worth continuing."""


def status_of(error: BaseException) -> str:
    """Return the status in run.json of a training ended by `error`: `interrupted`, `pruned` or `failed`."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "pruned" if isinstance(error, Pruned) else "failed"
