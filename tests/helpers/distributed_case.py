"""The program that `test_distributed.py` runs under torchrun: distributed_case.py FOLDER PHANTOM CACHE."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from command_line import run_verb  # noqa: E402
from config import Config, compose_config  # noqa: E402
from dataset.image_set import Batch, ImageSet  # noqa: E402
from dataset.loading import load_dataset  # noqa: E402
from pretrained_models import Architecture  # noqa: E402
from training import loop, trainer  # noqa: E402
from training.distributed import Ranks, job  # noqa: E402
from training.loop import Learner, train_epoch, validate  # noqa: E402
from utils import UserError  # noqa: E402

SIDE = 32
group_norm = partial(nn.GroupNorm, 2, 8)
batch_norm = partial(nn.BatchNorm2d, 8)


class Network(nn.Module):
    """A small network without dropout that computes in the precision of its weights."""

    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2), norm(), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(32, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(inputs.to(self.head.weight.dtype)).flatten(1))


def config_of(phantom: Path, cache: Path, *words: str) -> Config:
    shared = [f"data.size={SIDE}", f"data.cache_dir={cache}", "data.split=0.6,0.2,0.2", "train.batch=8"]
    return compose_config(
        [*shared, "train.lr=0.01", *words], {"data.path": str(phantom), "init": "none", "precision": "fp32"}
    )


def learner_of(
    config: Config, ranks: Ranks, norm: Callable[[], nn.Module], dtype: torch.dtype = torch.float32
) -> Learner:
    torch.manual_seed(5)
    model = Network(norm).to(dtype)
    architecture = Architecture(name="tiny", head="head", size=SIDE, mean=(0.5,), std=(0.25,))
    fixed = {"architecture": architecture, "size": SIDE, "device": torch.device("cpu"), "precision": "fp32"}
    return Learner(model=model, config=config, ranks=ranks, **fixed)


def losses_of(learner: Learner, images: ImageSet, epochs: int) -> list[float]:
    """Train and return the mean loss of every step, over the shares of all ranks."""
    sums: list[torch.Tensor] = []
    ranks, counts = learner.ranks, []
    original = loop._step

    def step(learner: Learner, forward: Any, share: Any, batches: Iterator[Batch]) -> torch.Tensor:
        counts.append(share.images)
        return original(learner, forward, share, batches)

    def total(tensor: torch.Tensor) -> torch.Tensor:
        sums.append(Ranks.sum(ranks, tensor).clone())
        return sums[-1]

    loop._step, ranks.sum = step, total
    try:
        for epoch in range(1, epochs + 1):
            train_epoch(learner, images, epoch)
    finally:
        loop._step = original
        del ranks.sum
    return [float(pair[0]) / number for pair, number in zip(sums, counts, strict=True)]


def drawn_of(learner: Learner, images: ImageSet) -> list[int]:
    """Train one epoch and return the images that this rank draws."""
    drawn: list[int] = []
    original = images.batches

    def spying(*arguments: Any, **named: Any) -> Iterator[Batch]:
        for batch in original(*arguments, **named):
            drawn.extend(batch.indices.tolist())
            yield batch

    images.batches = spying
    train_epoch(learner, images, 1)
    del images.batches
    return drawn


def agree(ranks: Ranks, phantom: Path, cache: Path) -> dict[str, Any]:
    """Return results that must not depend on the number of ranks, and two that do: statistics and weights per rank."""
    config = config_of(phantom, cache)
    with ranks.leader_first():
        dataset = load_dataset(config.data, SIDE)
    whole, validation = dataset.images("train"), dataset.images("val")
    results: dict[str, Any] = {"images": len(whole)}
    exact = {"norm": group_norm, "dtype": torch.float64}

    def first(number: int) -> ImageSet:
        return whole.take(np.arange(len(whole)) < number)

    # The last batches have 3 images, which is too small for two ranks, 7 and 6.
    for name, number, words in (
        ("weighted", 67, ["train.label_smoothing=0.1"]),
        ("frozen", 63, ["train.freeze_epochs=1", "train.sampler=sequential", "train.clip_norm=null"]),
        ("accumulated", 62, [f"train.accumulate={2 if ranks.world > 1 else 1}", "train.clip_norm=0.1"]),
    ):
        learner = learner_of(config_of(phantom, cache, *words), ranks, **exact)
        results[name] = losses_of(learner, first(number), 3)
    if ranks.world == 1:
        learner = learner_of(config_of(phantom, cache, "train.accumulate=4", "train.clip_norm=0.1"), ranks, **exact)
        results["accumulated alone"] = losses_of(learner, first(62), 3)
    results["single precision"] = losses_of(learner_of(config, ranks, group_norm), whole, 1)
    sequential = config_of(phantom, cache, "train.sampler=sequential")
    drawn = drawn_of(learner_of(sequential, ranks, group_norm), first(64))
    results["drawn"] = ranks.gather(np.array(drawn)).tolist()
    for eval_batch in (5, 100):  # with 100, one rank has no images
        tested = learner_of(config_of(phantom, cache, f"train.eval_batch={eval_batch}"), ranks, batch_norm)
        results[f"validation {eval_batch}"] = validate(tested, validation, ranks.share(validation, eval_batch))
        results[f"predictions {eval_batch}"] = tested.validated.tolist()
    normed = learner_of(config, ranks, batch_norm)
    train_epoch(normed, first(67), 1)
    results["statistics"] = ranks.gather(normed.model.body[1].running_var[None].numpy()).tolist()
    results["weights"] = ranks.gather(normed.model.head.weight.detach()[None].numpy()).tolist()
    return results


def fail(phantom: Path, cache: Path, folder: Path) -> None:
    """Start a training in which rank 1 raises a `UserError` in the second epoch."""
    steps, original = [], loop._step

    def step(*arguments: Any) -> torch.Tensor:
        steps.append(1)
        if os.environ["RANK"] == "1" and len(steps) == 12:
            raise UserError("the disk of this rank is gone")
        return original(*arguments)

    loop._step = step
    trainer.train(config_of(phantom, cache, "model=timm/test_resnet", "track=none", f"save={folder}"), "failed")


def main(argv: list[str]) -> None:
    folder, phantom, cache = map(Path, argv)
    with job() as ranks:
        results = agree(ranks, phantom, cache)
        if ranks.leads:
            torch.save(results, folder / "results.pt")
        trainer.job = lambda: contextlib.nullcontext(ranks)  # the training belongs to this job
        fail(phantom, cache, folder)


if __name__ == "__main__":
    run_verb(main, ranks=True)
