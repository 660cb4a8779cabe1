"""A training and its run folder, in which rank 0 writes run.json, train.log, checkpoints, history and curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from command_line import log_to
from dataset.image_set import ImageSet
from dataset.loading import Dataset
from evaluation.figures.plots import learning_curves_figure, save_figure
from experiment.checkpoint import Checkpoint, hashes_to_tensor, save_checkpoint
from experiment.run_folder import RunFolder, now, runs_folder
from training.loop import Learner
from utils import best_epoch, count, device_name, interrupts_wait, log, shown

SAVED = ("architecture", "size", "precision")  # the attributes that a learner shares with its checkpoints


class Pruned(Exception):
    """Raised by the `report` callback of `train` to end a training that is not worth continuing."""


def status_of(error: BaseException) -> str:
    """Return the status in run.json of a training ended by `error`: `interrupted`, `pruned` or `failed`."""
    return {KeyboardInterrupt: "interrupted", Pruned: "pruned"}.get(type(error), "failed")


@dataclass(kw_only=True)
class Training:
    """A training in progress.

    Attributes:
        init: where the initial weights come from, in words.
        run: the run folder, on rank 0 only.
        history: the rows of history.csv.
    """

    learner: Learner
    dataset: Dataset
    init: str
    run: RunFolder | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def validation(self) -> ImageSet:
        """The validation images."""
        return self.dataset.images("val")

    @cached_property
    def train_hashes(self) -> torch.Tensor:
        """(n, 32) uint8, the SHA-256 of every training image."""
        return hashes_to_tensor(list(self.dataset.images("train").records["sha256"]))

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch so far."""
        return best_epoch(self.history)

    @property
    def improved(self) -> bool:
        """True if the newest epoch is the best so far."""
        return self.best is self.history[-1]

    def start(self, name: str | None) -> None:
        """Create the run folder with config.yaml, split.csv and run.json. Raises: `UserError`."""
        learner, dataset, config = self.learner, self.dataset, self.learner.config
        self.run = RunFolder.create(runs_folder(config), config.model, name)
        record = {"model": config.model, "seed": config.seed}
        record |= {"device": device_name(learner.device), "ranks": learner.ranks.world, "precision": learner.precision}
        record |= {"init": self.init, "classes": dataset.classes, "size": dataset.side}
        record |= {"data": config.data.path or "phantom", "unreadable": len(dataset.unreadable)}
        self.run.start(config, dataset.records, record)

    def reopen(self, checkpoint: Checkpoint) -> None:
        """Open the folder of a run that is resumed from `checkpoint`, and update its run.json."""
        self.run = run = RunFolder.open(checkpoint.path.parent)
        run.write_config(self.learner.config)
        for key in ("finished", "reason"):  # how the run ended before
            run.record.pop(key, None)
        device, ranks = device_name(self.learner.device), self.learner.ranks.world
        resumed = [*run.record.get("resumed", []), {"epoch": checkpoint.epoch, "time": now(), "ranks": ranks}]
        run.update(status="running", device=device, ranks=ranks, resumed=resumed)
        log.info(f"resuming {shown(run.path)} after epoch {checkpoint.epoch}")

    def log_start(self) -> None:
        """Log the model, the device, the images and the unreadable files."""
        record, train, ranks = self.run.record, self.learner.config.train, self.learner.ranks
        log.info(
            f"run {shown(self.run.path)}: {record['model']} at {record['size']}×{record['size']}, "
            f"{self.learner.precision} on {record['device']}, weights: {record['init']}"
        )
        if ranks.world * train.accumulate > 1:
            log.info(
                f"batch of {train.batch}: {count(ranks.world, 'rank')} × {count(train.accumulate, 'accumulation step')}"
                f" × {count(ranks.micro_batch(train), 'image')}; the learning rate applies to the whole batch"
            )
        for path, reason in self.dataset.unreadable.items():
            log.debug(f"unreadable image left out: {path} ({reason})")
        log.info(self.dataset.table().to_string())

    def log_epoch(self) -> None:
        """Log the newest epoch, with an asterisk if it is the best so far."""
        row = self.history[-1]
        log.info(
            f"epoch {row['epoch']}/{self.learner.config.train.epochs}  loss {row['train_loss']:.4f}  accuracy "
            f"{row['train_accuracy']:.4f}  valid loss {row['valid_loss']:.4f}  accuracy {row['valid_accuracy']:.4f}  "
            f"macro F1 {row['valid_macro_f1']:.4f}  {row['images_per_second']:.0f} images/s  {row['seconds']:.1f} s"
            + ("  *" if self.improved else "")
        )

    @interrupts_wait()
    def save_epoch(self) -> None:
        """Write last.pt, history.csv and curves.png, and best.pt if the newest epoch is the best so far.

        Ctrl-C waits for all of them.
        """
        learner, history, run = self.learner, self.history, self.run
        saved = {name: getattr(learner, name) for name in SAVED} | {"epoch": history[-1]["epoch"]}
        saved |= {"classes": self.dataset.classes, "fit": learner.config.data.fit, "train_hashes": self.train_hashes}
        saved |= {"config": asdict(learner.config), "state": learner.model.state_dict()}
        checkpoint = Checkpoint(**saved, resume={}, path=run.path / "best.pt")
        if self.improved:
            save_checkpoint(checkpoint)
        resume = {"optimizer": learner.optimizer.state_dict(), "history": history}
        save_checkpoint(replace(checkpoint, path=run.path / "last.pt", resume=resume))
        run.update(compiled=learner.forward is not learner.model)
        run.write_history(history)
        figure = learning_curves_figure(history, self.best["epoch"])
        figure.suptitle(f"{learner.config.model}, {run.path.name}", fontsize=10)
        save_figure(figure, run.path / "curves.png")

    def finish(self) -> None:
        """Write the results into run.json, and log the commands that come next."""
        history, run, best, folder = self.history, self.run, self.best, shown(self.run.path)
        seconds, rates = sum(row["seconds"] for row in history), [row["images_per_second"] for row in history]
        run.update(
            status="finished",
            finished=now(),
            epochs=len(history),
            best_epoch=best["epoch"],
            best={k: best[k] for k in ("valid_loss", "valid_accuracy", "valid_macro_f1")},
            timings={"train_seconds": round(seconds, 2), "images_per_second": round(sum(rates) / len(rates), 2)},
        )
        log.info(
            f"best epoch {best['epoch']}: validation loss {best['valid_loss']:.4f}, accuracy "
            f"{best['valid_accuracy']:.4f}; {seconds:.0f} s in total\nrun folder: {folder}\nnext:\n"
            f"  python test.py --weights {folder}/best.pt\n  python draw_cam.py --weights {folder}/best.pt --save"
        )

    def fail(self, error: BaseException) -> None:
        """Write the status and the reason of a training that `error` ended early into run.json and train.log."""
        status, reason, run = status_of(error), str(error) or type(error).__name__, self.run
        run.update(status=status, reason=reason, finished=now())
        with log_to(run.path / "train.log"):
            log.info(f"{status}: {reason}")
            if status == "interrupted" and (run.path / "last.pt").exists():
                log.info(f"continue with: python train.py --resume {shown(run.path)}")
