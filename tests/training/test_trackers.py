"""Trackers: what TensorBoard's and MLflow's own readers find is what history.csv says; none ever ends a training."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from command_line import start_logging
from config import Config, compose_config
from experiment.checkpoint import load_checkpoint
from experiment.run_folder import HISTORY
from training.trackers import base as trackers
from training.trackers import mlflow as mlflow_tracker
from training.trackers import tensorboard as tensorboard_tracker
from training.trackers.tensorboard import TAGS
from training.trainer import resume, train
from utils import UserError


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither what the machine says of MLflow, nor what a test makes MLflow say, reaches another test."""
    start_logging()
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("MLFLOW")}
    yield
    for name in [name for name in os.environ if name.startswith("MLFLOW")]:
        del os.environ[name]
    os.environ.update(before)


def _config(phantom: Path, cache_dir: Path, save: Path, track: str, epochs: int = 1) -> Config:
    words = [f"data.cache_dir={cache_dir}", "data.split=0.6,0.2,0.2", "data.size=64", "model=timm/test_resnet"]
    flags = {
        "data.path": str(phantom),
        "init": "none",
        "precision": "fp32",
        "train.epochs": epochs,
        "train.batch": 24,
        "train.patience": 9,
        "save": str(save),
        "track": track,
    }
    return compose_config(words, flags)


def _record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def _events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


def _shown(run: Path) -> pd.DataFrame:
    """TensorBoard's scalars as a history, in the order that they were written in."""
    events = _events(run)
    columns = {column: [(e.step, e.value) for e in events.Scalars(tag)] for column, tag in TAGS.items()}
    assert len({tuple(step for step, _ in values) for values in columns.values()}) == 1
    found = pd.DataFrame({column: [value for _, value in values] for column, values in columns.items()})
    found.insert(0, "epoch", [step for step, _ in columns["seconds"]])
    return found[HISTORY]


def _history(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "history.csv")


def _warnings(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "--track" in line]


def test_tensorboard_shows_the_history(tiny_run: Path) -> None:
    pd.testing.assert_frame_equal(_shown(tiny_run), _history(tiny_run), rtol=1e-6)  # TensorBoard keeps 32 bits


def test_tensorboard_shows_configuration_and_pictures(tiny_run: Path) -> None:
    events, record = _events(tiny_run), _record(tiny_run)
    (text,) = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert [line[4:] for line in shown.splitlines()] == (tiny_run / "config.yaml").read_text().splitlines()
    losses = _history(tiny_run)["valid_loss"]
    best_so_far = (losses == losses.cummin()).to_numpy().nonzero()[0] + 1
    confusion = events.Images("validation/confusion matrix")
    assert [image.step for image in confusion] == best_so_far.tolist()
    cams = sorted(tag for tag in events.Tags()["images"] if tag.startswith("sample Grad-CAM/"))
    assert cams == [f"sample Grad-CAM/{name} 1" for name in record["classes"]]
    for tag in cams:
        (image,) = events.Images(tag)
        picture = Image.open(io.BytesIO(image.encoded_image_string))
        assert (image.step, picture.size) == (record["best_epoch"], (image.width, image.height))
        assert np.ptp(np.array(picture.convert("HSV"))[..., 1]) > 100  # a map in colour over a grey radiograph


def test_the_confusion_matrix_is_that_of_the_predictions() -> None:
    from evaluation.figures.plots import confusion_figure
    from training.trackers.previews import confusion_picture

    drawn = io.BytesIO()
    metrics = {
        "confusion": [[3, 1], [0, 6]],
        "classes": ["A", "B"],
        "n": 10,
        "accuracy": {"value": 0.9},
        "balanced_accuracy": {"value": 0.875},
    }
    confusion_figure(metrics, "t").savefig(drawn, format="png", dpi=100)
    assert confusion_picture(np.array([[3, 1], [0, 6]]), ["A", "B"], "t") == drawn.getvalue()


def test_a_run_that_goes_on_is_one_log(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    run = train(_config(phantom, cache_dir, tmp_path, "tensorboard"), "a")
    resume(run, {"train.epochs": 2, "track": "none"})
    last = max(run.glob("events.*"))
    with last.open("ab") as file:
        file.write(b"\x18\0\0\0half a record")  # the machine went down
    resume(run, {"train.epochs": 3, "track": "tensorboard"})  # what was not shown is shown now
    shown = _shown(run)
    assert shown["epoch"].tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(shown, _history(run), rtol=1e-6)
    assert len(_events(run).Tensors("config/text_summary")) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_warning(
    phantom: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(tensorboard_tracker, "new_file", lambda folder: Path("/dev/full"))
    run = train(_config(phantom, cache_dir, tmp_path, "tensorboard"), "full")
    (warning,) = _warnings(capsys)
    assert "No space left on device" in warning and "--track none" in warning
    assert warning in (run / "train.log").read_text()
    assert _record(run)["status"] == "finished"
    assert not list(run.glob("events.*"))


def test_a_folder_that_takes_no_events_is_one_warning(
    phantom: Path,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(tensorboard_tracker, "new_file", lambda folder: folder / "gone" / "events")
    run = train(_config(phantom, cache_dir, tmp_path, "tensorboard"), "gone")
    assert len(_warnings(capsys)) == 1
    assert _record(run)["status"] == "finished"


def test_mlflow_keeps_the_run(phantom: Path, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """One run there, whether it was trained at one go or not: numbers, parameters, files and a model that works."""
    import mlflow
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "a?b #ä"  # signs that mean something in an address
    run = train(_config(phantom, cache_dir, folder, "mlflow"), "a")
    first = _record(run)["mlflow"]["run_id"]
    resume(run, {"train.epochs": 2})
    assert _warnings(capsys) == []
    assert "MLFLOW_TRACKING_URI" not in os.environ  # nor is it left set for whoever comes next
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    assert (folder / "mlflow.db").is_file()
    (tmp_path / "link.db").symlink_to(folder / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'link.db'}"
    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == mlflow_tracker.EXPERIMENT]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_id, found.info.run_name, found.info.status) == (first, "a", "FINISHED")
    history = _history(run)
    for name in HISTORY[1:]:
        metrics = client.get_metric_history(first, name)
        assert [m.step for m in metrics] == [1, 2]
        np.testing.assert_allclose([m.value for m in metrics], history[name], rtol=1e-12)
    assert found.data.params["train.batch"] == "24" and found.data.params["model"] == "timm/test_resnet"
    assert found.data.tags["mlflow.source.git.commit"] == _record(run)["commit"]
    kept = Path(client.download_artifacts(first, "", str(tmp_path)))
    for name in ("config.yaml", "curves.png", "history.csv", "best.pt", "run.json"):
        assert (kept / name).read_bytes() == (run / name).read_bytes()
    assert {p.name for p in (kept / "sample Grad-CAM").iterdir()} == {f"{c} 1.png" for c in _record(run)["classes"]}
    checkpoint = load_checkpoint(run / "best.pt")
    (logged,) = client.search_logged_models([experiment.experiment_id], filter_string=f"source_run_id = '{first}'")[:1]
    pictures = torch.randn(3, 3, 64, 64)
    mlflow.set_tracking_uri(uri)
    served = mlflow.pytorch.load_model(logged.model_uri)
    mlflow.set_tracking_uri(None)
    with torch.inference_mode():
        torch.testing.assert_close(served(pictures), checkpoint.model()(pictures), rtol=1e-4, atol=1e-4)


def test_a_server_that_is_down_is_one_warning(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://doctor:secret@127.0.0.1:{port}")
    began = time.monotonic()
    run = train(_config(phantom, cache_dir, tmp_path, "mlflow"), "down")
    assert time.monotonic() - began < 30
    out, err = capfd.readouterr()
    (warning,) = [line for line in out.splitlines() if "--track" in line]
    assert f"http://127.0.0.1:{port} failed" in warning and "start the server" in warning
    assert "secret" not in out + err + (run / "train.log").read_text() + (run / "run.json").read_text()
    assert "Traceback" not in out + err and "Retrying" not in out + err
    assert _record(run)["status"] == "finished"


def test_an_address_that_is_none_is_one_warning(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[bad")
    run = train(_config(phantom, cache_dir, tmp_path, "mlflow"), "bad")
    (warning,) = _warnings(capsys)
    assert "http://[bad failed" in warning and "MLFLOW_TRACKING_URI" in warning
    assert _record(run)["status"] == "finished"


def test_a_server_that_never_answers_is_not_waited_for(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # one's own setting is kept
        began = time.monotonic()
        run = train(_config(phantom, cache_dir, tmp_path, "mlflow"), "silent")
    assert time.monotonic() - began < 20
    assert "timed out" in _warnings(capsys)[0].lower()
    assert _record(run)["status"] == "finished"


class _Fake:
    """A backend that writes down what it is told, draws random numbers as libraries do, and may fail."""

    place, remedy, look = "nowhere", "do nothing", "true"

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

    def picture(self, name: str, png: bytes, epoch: int) -> None:
        self._do(name)

    def end(self, status: str) -> None:
        self._do(status)


def test_tracking_changes_no_weight_and_a_failure_is_the_last_call(
    phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    untracked = train(_config(phantom, cache_dir, tmp_path, "none", 2), "none")
    assert not list(untracked.glob("events.*"))
    fake = _Fake(fails_at="epoch 2")
    monkeypatch.setattr(trackers, "_backend", lambda run, config: fake)
    tracked = train(_config(phantom, cache_dir, tmp_path, "tensorboard", 2), "fake")
    assert fake.calls == ["open", "epoch 1", "validation/confusion matrix", "epoch 2"]
    (warning,) = [line for line in _warnings(capsys) if "WARNING" in line]
    assert "nowhere failed (RuntimeError: two lines): do nothing" in warning
    states = [load_checkpoint(run / "last.pt").state for run in (untracked, tracked)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (UserError, "failed")])
def test_a_tracker_learns_how_it_ended_and_leaves_the_random_state(
    error: type[BaseException], status: str, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    from types import SimpleNamespace

    from experiment.run_folder import RunFolder

    fake = _Fake()
    monkeypatch.setattr(trackers, "_backend", lambda run, config: fake)
    learner = SimpleNamespace(config=Config(), validated=None)
    history = [{"epoch": 1, "valid_loss": 2.0}]
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    with pytest.raises(error), trackers.tracking(RunFolder(tiny_run), learner, None, history) as track_epoch:
        history.append({"epoch": 2, "valid_loss": 1.0})
        track_epoch()
        raise error("no more")
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # noqa: NPY002
    assert fake.calls == ["open", "epoch 1", "epoch 2", status]
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_installed_is_said_before_anything_starts(
    name: str, phantom: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == name else real(n, *a))
    with pytest.raises(UserError, match=f"--track {name}: not installed: pip install {name}"):
        train(_config(phantom, cache_dir, tmp_path / "runs", name))
    assert not (tmp_path / "runs").exists()
    trackers.check_tracker("none")
