"""Several ranks: two Gloo ranks of a real torchrun job on this machine, compared with a single process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.sampling import epoch_steps, share_of
from pretrained_models import build_model
from tests.helpers.distributed_case import agree, config_of
from tests.helpers.verbs import ROOT
from training.distributed import Ranks, synchronise_norms
from training.trainer import resume
from utils import UserError

CASE = ROOT / "tests" / "helpers" / "distributed_case.py"


def _torchrun(*command: object) -> subprocess.CompletedProcess:
    """Run `torchrun --nproc-per-node 2 COMMAND` with one thread per rank, so that sums keep their order."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, command)],
        capture_output=True,
        text=True,
        timeout=600,  # only a hang takes this long
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


@pytest.fixture(scope="module")
def launch(
    phantom: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess]:
    """Return the folder of a job of two ranks, shared by most tests as starting one takes seconds, and its process."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, _torchrun(CASE, folder, phantom, cache_dir)


@pytest.fixture(scope="module")
def both(
    launch: tuple[Path, subprocess.CompletedProcess], phantom: Path, cache_dir: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the results of one process and of two ranks."""
    folder, ended = launch
    assert (folder / "results.pt").exists(), ended.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return agree(Ranks(), phantom, cache_dir), torch.load(folder / "results.pt", weights_only=True)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weighted", "frozen", "accumulated"])
def test_two_ranks_take_the_steps_of_one(name: str, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """In float64, with short last batches, clipping, a frozen backbone and accumulation."""
    one, two = both
    assert len(one[name]) > 20
    assert len(set(one[name])) == len(one[name])
    np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_accumulation_takes_the_same_steps(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, _ = both
    np.testing.assert_allclose(one["accumulated alone"], one["accumulated"], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_first_step_in_single_precision(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = both
    assert two["single precision"][0] == pytest.approx(one["single precision"][0], abs=1e-6)


@pytest.mark.slow
def test_every_image_is_drawn_once(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for results in both:
        assert sorted(results["drawn"]) == list(range(64))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [5, 100])
def test_the_evaluation_is_that_of_one_process(batch: int, both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Equal bit for bit, with each image once and in order."""
    one, two = both
    assert two[f"validation {batch}"] == one[f"validation {batch}"]
    assert two[f"predictions {batch}"] == one[f"predictions {batch}"]
    assert len(one[f"predictions {batch}"]) > 20


@pytest.mark.slow
def test_ranks_agree_on_weights_and_statistics(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """All ranks have the weights and statistics that are saved and validated. The statistics differ from those of one
    process, because batch normalisation sees the images of one rank only.
    """
    one, two = both
    for name in ("statistics", "weights"):
        assert len(one[name]) == 1
        assert two[name][0] == two[name][1]
    assert two["statistics"][0] != one["statistics"][0]


@given(st.integers(1, 100), st.integers(1, 6), st.integers(1, 4), st.integers(1, 8))
def test_shares(images: int, world: int, accumulate: int, micro: int) -> None:
    """Every position is processed once, in equally many rounds on all ranks, and not alone if that is avoidable."""
    batch = micro * world * accumulate
    steps = epoch_steps(images, batch)
    assert [place for step in steps for place in step] == list(range(images))
    for step in steps:
        shares = [share_of(step, micro, rank, world, accumulate) for rank in range(world)]
        assert len({len(share.micro_batches) for share in shares}) == 1
        assert all(0 not in share.counted[:-1] for share in shares)
        worked = [
            place
            for share in shares
            for places, counted in zip(share.micro_batches, share.counted, strict=True)
            for place in places
            if counted
        ]
        assert sorted(worked) == list(step)
        assert sum(sum(share.counted) for share in shares) == len(step) == shares[0].images
        sizes = [len(places) for share in shares for places in share.micro_batches]
        assert all(sizes)
        assert max(sizes) <= micro + 1
        if micro > 1 and images > 1:
            assert min(sizes) > 1
        if len(step) == batch:
            assert set(sizes) == {micro}


def test_a_batch_that_does_not_divide() -> None:
    train = config_of(Path("x"), Path("x"), "train.batch=30", "train.accumulate=2").train
    assert Ranks(world=3).micro_batch(train) == 5
    problem = r"--batch 30: .* by 8 \(4 ranks × train.accumulate=2\)"
    with pytest.raises(UserError, match=problem + "; use --batch 24 or 32, or"):
        Ranks(world=4).micro_batch(train)


def test_ranks_refuse_named_devices_and_cpu_synchronisation() -> None:
    with pytest.raises(UserError, match="--device cuda:1: torchrun gives every rank its own GPU"):
        Ranks(world=2).device("cuda:1")
    model = torch.nn.BatchNorm2d(3)
    with pytest.raises(UserError, match=r"train\.sync_batch_norm=true: .*GPUs only"):
        synchronise_norms(model, True, Ranks(world=2), torch.device("cpu"))
    assert synchronise_norms(model, True, Ranks(), torch.device("cpu")) is model


@pytest.mark.parametrize("name", ["resnet18", "timm/efficientnet_b0"])
def test_a_model_with_synchronised_norms_is_the_same_model(name: str) -> None:
    """Its state dict fits a model with BatchNorm. (Its forward pass needs GPUs.)"""
    model, _, _ = build_model(name, 4, "none")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    synchronised = synchronise_norms(model, True, Ranks(world=2), torch.device("cuda"))
    norms = [m for m in synchronised.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    after = synchronised.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    build_model(name, 4, "none")[0].load_state_dict(after)


@pytest.mark.slow
def test_a_bad_batch_ends_all_ranks_with_one_line(phantom: Path, cache_dir: Path, tmp_path: Path) -> None:
    ended = _torchrun("train.py", "--data", phantom, "--batch", 9, "--save", tmp_path, f"data.cache_dir={cache_dir}")
    assert ended.returncode != 0
    assert ended.stderr.count("--batch 9: not divisible by 2") == 1
    assert ended.stderr.count("exitcode  : 2 ") == 2
    assert "UserError" not in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_job_with_its_reason(launch: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, ended = launch
    run = folder / "failed"
    assert ended.returncode != 0
    record = json.loads((run / "run.json").read_text())
    reason = "rank 1: the disk of this rank is gone"
    assert (record["status"], record["reason"], record["ranks"]) == ("failed", reason, 2)
    assert f"distributed_case.py: {reason}" in ended.stderr
    assert ended.stderr.count("the disk of this rank is gone") == 1
    assert f"failed: {reason}" in (run / "train.log").read_text()
    assert torch.load(run / "last.pt", weights_only=True)["epoch"] == 1


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_ranks(tiny_run: Path, tmp_path: Path) -> None:
    """From one rank to two and back to one, with the same kind of checkpoint."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "interrupted", "reason": "KeyboardInterrupt"}))
    ended = _torchrun("train.py", "--resume", run, "--epochs", 3, "track=none")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("epoch 3/3 ") == 1  # only rank 0 logs
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["ranks"], record["epochs"]) == ("finished", 2, 3)
    assert "reason" not in record
    assert "2 ranks × 1 accumulation step × 8 images" in (run / "train.log").read_text()
    resume(run, {"train.epochs": 4, "train.accumulate": 2, "device": "cpu"})
    record = json.loads((run / "run.json").read_text())
    assert [(r["epoch"], r["ranks"]) for r in record["resumed"]] == [(2, 2), (3, 1)]
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    before, after = (torch.load(folder / "last.pt", weights_only=True) for folder in (tiny_run, run))
    assert list(before["model"]) == list(after["model"])
    assert int(after["resume"]["optimizer"]["state"][0]["step"]) == 2 * int(
        before["resume"]["optimizer"]["state"][0]["step"]
    )
