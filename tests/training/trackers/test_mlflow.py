"""MLflow's own reader finds the numbers of history.csv; a server that fails ends no training."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from experiment.run_folder import HISTORY
from tests.helpers.tracking import Tracked, one_warning, read_history, read_record
from training.trackers.mlflow import EXPERIMENT, FILES
from training.trainer import resume


@pytest.mark.slow
def test_mlflow_stores_the_run(tracked: Tracked, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A resumed run is one MLflow run with all numbers, parameters and files."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "a?b #ä"  # characters with a meaning in URLs
    run = tracked("mlflow", save=folder)
    first = read_record(run)["mlflow"]["run_id"]
    resume(run, {"train.epochs": 2})
    assert "--track" not in capfd.readouterr().out
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    (tmp_path / "link.db").symlink_to(folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'link.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    (stored,) = client.search_runs([experiment.experiment_id])
    assert (stored.info.run_id, stored.info.run_name, stored.info.status) == (first, "a", "FINISHED")
    history = read_history(run)
    for name in HISTORY[1:]:
        metrics = client.get_metric_history(first, name)
        assert [m.step for m in metrics] == [1, 2]
        np.testing.assert_allclose([m.value for m in metrics], history[name], rtol=1e-12)
    assert stored.data.params["train.batch"] == "24" and stored.data.params["model"] == "timm/test_resnet"
    assert stored.data.tags["mlflow.source.git.commit"] == read_record(run)["commit"]
    files = Path(client.download_artifacts(first, "", str(tmp_path)))
    assert all((files / name).read_bytes() == (run / name).read_bytes() for name in FILES)
    names = {f"{c} 1.png" for c in read_record(run)["classes"]}
    assert {p.name for p in (files / "sample Grad-CAM").iterdir()} == names
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
    warning = one_warning(run, capfd)
    assert f"http://{shown.format(port=port)} failed" in warning and remedy in warning
    assert "secret" not in (run / "train.log").read_text() + (run / "run.json").read_text()


@pytest.mark.slow
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
    assert "timed out" in one_warning(run, capfd).lower()
