"""TensorBoard's own reader finds the numbers of history.csv."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile

from experiment.run_folder import HISTORY
from tests.helpers.tracking import Tracked, one_warning, read_history, read_record
from training.trackers.tensorboard import TAGS
from training.trainer import resume


def _events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def _shown(run: Path) -> pd.DataFrame:
    """Return TensorBoard's scalars as a history, in the order in which they were written."""
    scalars = {column: _events(run).Scalars(tag) for column, tag in TAGS.items()}
    steps = {column: [event.step for event in events] for column, events in scalars.items()}
    assert all(numbers == steps["seconds"] for numbers in steps.values())
    values = {column: [event.value for event in events] for column, events in scalars.items()}
    return pd.DataFrame({"epoch": steps["seconds"], **values})[HISTORY]


def test_tensorboard_shows_the_history(tiny_run: Path) -> None:
    pd.testing.assert_frame_equal(_shown(tiny_run), read_history(tiny_run), rtol=1e-6)  # TensorBoard keeps 32 bits


def test_tensorboard_shows_configuration_and_images(tiny_run: Path) -> None:
    events, record = _events(tiny_run), read_record(tiny_run)
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert [line[4:] for line in shown.splitlines()] == (tiny_run / "config.yaml").read_text().splitlines()
    losses = read_history(tiny_run)["valid_loss"]
    best_so_far = (losses == losses.cummin()).to_numpy().nonzero()[0] + 1
    assert [image.step for image in events.Images("validation/confusion matrix")] == best_so_far.tolist()
    cams = sorted(tag for tag in events.Tags()["images"] if tag.startswith("sample Grad-CAM/"))
    assert cams == [f"sample Grad-CAM/{name} 1" for name in record["classes"]]
    for tag in cams:
        (shown_image,) = events.Images(tag)
        image = Image.open(io.BytesIO(shown_image.encoded_image_string))
        assert (shown_image.step, image.size) == (record["best_epoch"], (shown_image.width, shown_image.height))
        assert np.ptp(np.array(image.convert("HSV"))[..., 1]) > 100  # a map in colour over a grey radiograph


@pytest.mark.slow
def test_a_resumed_run_has_every_epoch_once(tracked: Tracked) -> None:
    run = tracked("tensorboard")
    resume(run, {"train.epochs": 2, "track": "none"})
    with max(run.glob("events.*")).open("ab") as file:
        file.write(b"\x18\0\0\0half a record")  # the machine crashed
    resume(run, {"train.epochs": 3, "track": "tensorboard"})  # epoch 2 is added
    pd.testing.assert_frame_equal(_shown(run), read_history(run), rtol=1e-6)
    assert read_history(run)["epoch"].tolist() == [1, 2, 3]
    assert len(_events(run).Tensors("config/text_summary")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(("file", "reason"), [("/dev/full", "No space left"), ("/dev/null/gone", "Not a directory")])
def test_events_that_cannot_be_written_are_one_warning(
    file: str, reason: str, tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    whole = gfile.GFile
    monkeypatch.setattr(gfile, "GFile", lambda name, mode: whole(file if "w" in mode else name, mode))
    warning = one_warning(run := tracked("tensorboard"), capfd)
    assert reason in warning and "--track none" in warning
    assert not list(run.glob("events.*"))
