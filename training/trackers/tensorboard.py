"""A run's event files for TensorBoard.

Events are made by TensorBoard's and torch's own functions, and written at once and in this thread: torch's
`SummaryWriter` hands them to one of its own, where an error (a full disk) ends with a traceback on the screen.
"""

from __future__ import annotations

import shlex
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.run_folder import RunFolder
from utils import shown

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

# The columns of history.csv as TensorBoard groups them: what stands before the stroke is a heading.
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
FILE = "events.out.tfevents."  # in the run folder


class TensorBoard:
    """A `Backend` of `training.trackers`. The event files lie in the run folder, whose name TensorBoard shows.

    Args:
        parameters: the configuration, flat.
    """

    def __init__(self, run: RunFolder, parameters: dict[str, Any]) -> None:
        self.folder, self.parameters = run.path, parameters
        self.place = f"the event file in {shown(run.path)}"
        self.remedy = "make room, or leave it out with --track none"
        self.look = f"tensorboard --logdir {shlex.quote(shown(run.path.parent))}"
        self._file: Path | None = None

    def open(self) -> set[int]:
        """As `Backend.open`: of a run that goes on, the epochs in its earlier files."""
        from torch.utils.tensorboard.summary import custom_scalars, hparams, text

        earlier = sorted(self.folder.glob(f"{FILE}*"))
        self._file = new_file(self.folder)
        known = set().union(*(_epochs(file) for file in earlier))
        self._write(file_version="brain.Event:2")
        if not known:
            yaml = (self.folder / "config.yaml").read_text(encoding="utf-8")
            self._write(text("config", "\n".join(f"    {line}" for line in yaml.splitlines())))  # as Markdown has code
            self._write(custom_scalars(CHARTS))
            plain = {key: v if isinstance(v, (bool, str, float, int)) else str(v) for key, v in self.parameters.items()}
            for summary in hparams(plain, dict.fromkeys(TAGS.values(), 0)):
                self._write(summary)
        return known

    def scalars(self, row: dict[str, Any]) -> None:
        """As `Backend.scalars`."""
        from torch.utils.tensorboard.summary import scalar

        for column, tag in TAGS.items():
            self._write(scalar(tag, row[column]), row["epoch"])

    def picture(self, name: str, png: bytes, epoch: int) -> None:
        """As `Backend.picture`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", png[16:24])  # of the header chunk
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        self._write(Summary(value=[Summary.Value(tag=name, image=image)]), epoch)

    def end(self, status: str) -> None:
        """As `Backend.end`: all is written."""

    def _write(self, summary: Summary | None = None, epoch: int = 0, **event: Any) -> None:
        """Append one event."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = Event(wall_time=time.time(), step=epoch, summary=summary, **event)
        with self._file.open("ab") as file:
            RecordWriter(file).write(record.SerializeToString())


def new_file(folder: Path) -> Path:
    """Where to write: a run that goes on does not append, its last file may end in half a record. No name comes twice,
    for a TensorBoard that is running reads on where a file of that name ended.
    """
    return folder / f"{FILE}{time.time_ns() // 1000}.{socket.gethostname()}"


def _epochs(file: Path) -> set[int]:
    """The epochs whose numbers an event file holds, up to where it is whole."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    last = list(TAGS.values())[-1]
    return {
        event.step
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == last
    }
