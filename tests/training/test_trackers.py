"""Trackers: TensorBoard's and MLflow's own readers find the numbers of history.csv; no failure ends a training."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io import gfile

from command_line import start_logging
from config import Config
from evaluation.figures.plots import confusion_figure
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import HISTORY, RunFolder
from tests.helpers.training_case import small_config
from training.record import Pruned
from training.trackers import base as trackers
from training.trackers.mlflow import EXPERIMENT, FILES
from training.trackers.previews import confusion_image
from training.trackers.tensorboard import TAGS
from training.trainer import resume, train
from utils import UserError

Tracked = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the machine's MLflow variables, and delete those that a test sets."""
    start_logging()
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        monkeypatch.delenv(name)
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        del os.environ[name]


@pytest.fixture
def tracked(phantom: Path, cache_dir: Path, tmp_path: Path) -> Tracked:
    """`tracked("mlflow", epochs=2)` trains a small model and returns its run folder."""

    def run(track: str, epochs: int = 1, name: str = "a", save: Path = tmp_path) -> Path:
        words = (
            "model=timm/test_resnet",
            f"track={track}",
            f"train.epochs={epochs}",
            "train.batch=24",
            "train.patience=9",
        )
        return train(small_config(phantom, cache_dir, save, *words), name)

    return run


def _record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def _events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0}).Reload()


def _shown(run: Path) -> pd.DataFrame:
    """Return TensorBoard's scalars as a history, in the order in which they were written."""
    scalars = {column: _events(run).Scalars(tag) for column, tag in TAGS.items()}
    steps = {column: [event.step for event in events] for column, events in scalars.items()}
    assert all(numbers == steps["seconds"] for numbers in steps.values())
    values = {column: [event.value for event in events] for column, events in scalars.items()}
    return pd.DataFrame({"epoch": steps["seconds"], **values})[HISTORY]


def _history(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "history.csv")


def _one_warning(run: Path, capfd: pytest.CaptureFixture) -> str:
    """Return the only warning about the tracker, of a training that finished without tracebacks and passwords."""
    out, err = capfd.readouterr()
    (warning,) = [line for line in out.splitlines() if "--track" in line]
    assert warning.startswith("WARNING: ") and warning in (run / "train.log").read_text()
    assert not any(word in out + err for word in ("Traceback", "Retrying", "secret"))
    assert _record(run)["status"] == "finished"
    return warning


def test_tensorboard_shows_the_history(tiny_run: Path) -> None:
    pd.testing.assert_frame_equal(_shown(tiny_run), _history(tiny_run), rtol=1e-6)  # TensorBoard keeps 32 bits


def test_tensorboard_shows_configuration_and_images(tiny_run: Path) -> None:
    events, record = _events(tiny_run), _record(tiny_run)
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert [line[4:] for line in shown.splitlines()] == (tiny_run / "config.yaml").read_text().splitlines()
    losses = _history(tiny_run)["valid_loss"]
    best_so_far = (losses == losses.cummin()).to_numpy().nonzero()[0] + 1
    assert [image.step for image in events.Images("validation/confusion matrix")] == best_so_far.tolist()
    cams = sorted(tag for tag in events.Tags()["images"] if tag.startswith("sample Grad-CAM/"))
    assert cams == [f"sample Grad-CAM/{name} 1" for name in record["classes"]]
    for tag in cams:
        (shown_image,) = events.Images(tag)
        image = Image.open(io.BytesIO(shown_image.encoded_image_string))
        assert (shown_image.step, image.size) == (record["best_epoch"], (shown_image.width, shown_image.height))
        assert np.ptp(np.array(image.convert("HSV"))[..., 1]) > 100  # a map in colour over a grey radiograph


def test_the_confusion_matrix_has_the_predicted_counts() -> None:
    values = {"accuracy": {"value": 0.9}, "balanced_accuracy": {"value": 0.875}}
    metrics, drawn = {"confusion": [[3, 1], [0, 6]], "classes": ["A", "B"], "n": 10, **values}, io.BytesIO()
    confusion_figure(metrics, "r, validation, epoch 2").savefig(drawn, format="png", dpi=100)
    labels, predicted = np.repeat([0, 1], [4, 6]), np.array([0, 0, 0, *[1] * 7])
    training = SimpleNamespace(
        validation=SimpleNamespace(labels=labels, classes=["A", "B"]),
        learner=SimpleNamespace(validated=np.eye(2)[predicted]),
        run=SimpleNamespace(path=Path("r")),
        history=[{"epoch": 2}],
    )
    np.testing.assert_array_equal(confusion_image(training), np.asarray(Image.open(drawn).convert("RGB")))


@pytest.mark.slow
def test_a_resumed_run_has_every_epoch_once(tracked: Tracked) -> None:
    run = tracked("tensorboard")
    resume(run, {"train.epochs": 2, "track": "none"})
    with max(run.glob("events.*")).open("ab") as file:
        file.write(b"\x18\0\0\0half a record")  # the machine crashed
    resume(run, {"train.epochs": 3, "track": "tensorboard"})  # epoch 2 is added
    pd.testing.assert_frame_equal(_shown(run), _history(run), rtol=1e-6)
    assert _history(run)["epoch"].tolist() == [1, 2, 3]
    assert len(_events(run).Tensors("config/text_summary")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(("file", "reason"), [("/dev/full", "No space left"), ("/dev/null/gone", "Not a directory")])
def test_events_that_cannot_be_written_are_one_warning(
    file: str, reason: str, tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    whole = gfile.GFile
    monkeypatch.setattr(gfile, "GFile", lambda name, mode: whole(file if "w" in mode else name, mode))
    warning = _one_warning(run := tracked("tensorboard"), capfd)
    assert reason in warning and "--track none" in warning
    assert not list(run.glob("events.*"))


@pytest.mark.slow
def test_mlflow_stores_the_run(tracked: Tracked, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A resumed run is one MLflow run with all numbers, parameters and files."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "a?b #ä"  # characters with a meaning in URLs
    run = tracked("mlflow", save=folder)
    first = _record(run)["mlflow"]["run_id"]
    resume(run, {"train.epochs": 2})
    assert "--track" not in capfd.readouterr().out
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    (tmp_path / "link.db").symlink_to(folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'link.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    (stored,) = client.search_runs([experiment.experiment_id])
    assert (stored.info.run_id, stored.info.run_name, stored.info.status) == (first, "a", "FINISHED")
    history = _history(run)
    for name in HISTORY[1:]:
        metrics = client.get_metric_history(first, name)
        assert [m.step for m in metrics] == [1, 2]
        np.testing.assert_allclose([m.value for m in metrics], history[name], rtol=1e-12)
    assert stored.data.params["train.batch"] == "24" and stored.data.params["model"] == "timm/test_resnet"
    assert stored.data.tags["mlflow.source.git.commit"] == _record(run)["commit"]
    files = Path(client.download_artifacts(first, "", str(tmp_path)))
    assert all((files / name).read_bytes() == (run / name).read_bytes() for name in FILES)
    assert {p.name for p in (files / "sample Grad-CAM").iterdir()} == {f"{c} 1.png" for c in _record(run)["classes"]}
    assert (files / "validation" / "confusion matrix.png").is_file()


@pytest.mark.parametrize(
    ("address", "shown", "remedy"),
    [
        ("doctor:secret@127.0.0.1:{port}", "***@127.0.0.1:{port}", "start the server"),
        ("secret@127.0.0.1:{port}", "***@127.0.0.1:{port}", "start the server"),
        ("[bad", "[bad", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_server_that_is_down_is_one_warning_without_password_or_token(
    address: str,
    shown: str,
    remedy: str,
    tracked: Tracked,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{address.format(port=port)}")
    run = tracked("mlflow")
    warning = _one_warning(run, capfd)
    assert f"http://{shown.format(port=port)} failed" in warning and remedy in warning
    assert "secret" not in (run / "train.log").read_text() + (run / "run.json").read_text()


def test_a_server_that_never_answers_is_not_waited_for(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """It gets one request and one retry, both with the user's own timeout, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        run = tracked("mlflow")
        silent.setblocking(False)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert "timed out" in _one_warning(run, capfd).lower()


class _Fake:
    """A backend that records its calls, draws random numbers as libraries do, and may fail."""

    place, remedy, view = "nowhere", "do nothing", "true"

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.calls = fails_at, []

    def _do(self, name: str) -> None:
        self.calls.append(name)
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        if name == self.fails_at:
            raise RuntimeError("two\nlines")

    def open(self) -> set[int]:
        self._do("open")
        return set()

    def scalars(self, row: dict[str, Any]) -> None:
        self._do(f"epoch {row['epoch']}")

    def image(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._do(name)

    def close(self, status: str) -> None:
        self._do(status)


@pytest.mark.slow
def test_tracking_changes_no_weight_and_a_failure_is_the_last_call(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    untracked = tracked("none", 2)
    assert not list(untracked.glob("events.*"))
    fake = _Fake(fails_at="epoch 2")
    monkeypatch.setattr(trackers, "make_backend", lambda training: fake)
    run = tracked("tensorboard", 2, "fake")
    assert fake.calls == ["open", "epoch 1", "validation/confusion matrix", "epoch 2"]
    assert "nowhere failed (RuntimeError: two lines): do nothing" in _one_warning(run, capfd)
    states = [load_checkpoint(folder / "last.pt").state for folder in (untracked, run)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (UserError, "failed"), (Pruned, "pruned")]
)
def test_a_tracker_is_closed_with_the_status(
    error: type[BaseException], status: str, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    fake = _Fake()
    monkeypatch.setattr(trackers, "make_backend", lambda training: fake)
    history, learner = [{"epoch": 1, "valid_loss": 2.0}], SimpleNamespace(config=Config())
    training = SimpleNamespace(run=RunFolder(tiny_run), learner=learner, history=history, improved=False)
    with pytest.raises(error), trackers.tracking(training) as track_epoch:
        history.append({"epoch": 2, "valid_loss": 3.0})
        track_epoch()
        raise error("no more")
    assert fake.calls == ["open", "epoch 1", "epoch 2", status]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_reported_before_anything_starts(
    name: str, tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a))
    with pytest.raises(UserError, match=f"--track {name}: not installed; run pip install {name}"):
        tracked(name, save=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    trackers.check_tracker("none")
