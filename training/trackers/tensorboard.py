"""TensorBoard: event files in the run folder."""

from __future__ import annotations

import shlex
import threading
from typing import Any

import numpy as np

from experiment.run_folder import RunFolder
from utils import shown

# The columns of history.csv and their tags; TensorBoard groups tags by the part before the slash.
TAGS = {
    "train_loss": "loss/train",
    "valid_loss": "loss/validation",
    "train_accuracy": "accuracy/train",
    "valid_accuracy": "accuracy/validation",
    "valid_macro_f1": "macro_f1/validation",
    "learning_rate": "speed/learning_rate",
    "images_per_second": "speed/images_per_second",
    "seconds": "speed/seconds",
}
CHARTS = {"training beside validation": {name: ["Multiline", [f"{name}/.*"]] for name in ("loss", "accuracy")}}


class Tracker:
    """TensorBoard as a `Backend`. It lists runs by the names of their folders.

    Args:
        parameters: the configuration, by dotted key.
    """

    remedy = "make room, or pass --track none"

    def __init__(self, run: RunFolder, parameters: dict[str, Any]) -> None:
        self.folder, self.parameters = run.path, parameters
        self.place = f"the event file in {shown(run.path)}"
        self.view = f"tensorboard --logdir {shlex.quote(shown(run.path.parent))}"

    def open(self) -> set[int]:
        """As `Backend.open`."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter, summary

        threading.excepthook = _quiet_hook
        # A resumed run has event files, of which the last may be truncated.
        events, tag = EventAccumulator(str(self.folder), {"scalars": 0}).Reload(), TAGS["seconds"]
        recorded = {event.step for event in events.Scalars(tag)} if tag in events.Tags()["scalars"] else set()
        self._writer = SummaryWriter(str(self.folder))
        if not recorded:
            yaml = (self.folder / "config.yaml").read_text(encoding="utf-8")
            self._writer.add_text("config", "\n".join(f"    {line}" for line in yaml.splitlines()))  # a code block
            self._writer.add_custom_scalars(CHARTS)
            plain = {key: v if isinstance(v, (bool, str, float, int)) else str(v) for key, v in self.parameters.items()}
            for part in summary.hparams(plain, dict.fromkeys(TAGS.values(), 0)):  # add_hparams would create another run
                self._writer.file_writer.add_summary(part)
        return recorded

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`."""
        for column, tag in TAGS.items():
            self._writer.add_scalar(tag, row[column], row["epoch"])
        self._writer.flush()

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        """As `Backend.image`."""
        self._writer.add_image(name, pixels, epoch, dataformats="HWC")
        self._writer.flush()

    def close(self, status: str) -> None:
        """As `Backend.close`."""
        self._writer.close()


def _quiet_hook(arguments: threading.ExceptHookArgs) -> None:
    """Print no traceback for an error in SummaryWriter's thread: the next call to the writer raises it again."""
    if not type(arguments.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(arguments)
