"""The facts of a run and its evaluation as phrases, which fill the reporting checklist and the run card.

A phrase is lower case without a full stop. A fact that the records do not show is None: the item then stays blank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import SPLITS
from dataset.layouts import SPLIT_NAMES
from evaluation.metrics.table import OVERALL, PER_CLASS, SMALL
from evaluation.phrases import (
    MOST_NAMES,
    augmentation,
    by_class,
    counts,
    join,
    of_patients,
    patients_named,
    sampling_unit,
    schedule,
    threshold,
    trained_on,
    unreadable,
    with_limits,
    words,
)
from localization.methods.table import METHODS
from localization.states import MapState, count_flawed
from report.inputs import Inputs
from utils import PROJECT, count

Facts = dict[str, str | None]
OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}


def collect_facts(inputs: Inputs) -> Facts:
    """Every fact that `checklist.yaml` may name."""
    return {
        **_of_the_data(inputs),
        **_of_the_split(inputs),
        **_of_the_images(inputs),
        **_of_the_model(inputs),
        **_of_the_training(inputs),
        **_of_the_machine(inputs),
        **_of_the_evaluated(inputs),
        **_of_the_results(inputs),
        **_of_the_analysis(inputs),
    }


def _is_subset(predictions: pd.DataFrame, records: pd.DataFrame) -> bool:
    """Whether every evaluated image is one of `records`, by content."""
    return bool((predictions["sha256"] != "").all() and predictions["sha256"].isin(records["sha256"]).all())


def _of_the_data(inputs: Inputs) -> Facts:
    """The run's own data, also where other images are evaluated."""
    names = ("data", "synthetic", "n_images", "n_patients", "n_by_part", "n_by_class", "sources")
    facts: Facts = dict.fromkeys(names)
    split, data = inputs.split, inputs.record.get("data")
    if data == "phantom":
        facts["data"] = "the phantom, synthetic radiographs that this toolkit draws"
    elif data:
        facts["data"] = f"the images in {data}"
    if split is None:
        return facts
    if data == "phantom" and _is_subset(inputs.predictions.table, split):
        facts["synthetic"] = "every image is synthetic, drawn by this toolkit"
    parts = [(part, split[split["split"] == part]) for part in SPLITS]
    facts |= {
        "n_images": count(len(split), "image"),
        "n_patients": count(split["group"].nunique(), "patient") if patients_named(split) else None,
        "n_by_part": ", ".join(f"{part} {count(len(p), 'image')}{of_patients(p)}" for part, p in parts if len(p)),
        "n_by_class": by_class(split["label"]),
    }
    known = split["source"][split["source"] != ""]
    if len(known):
        rest = len(split) - len(known)
        facts["sources"] = f"{known.nunique()} ({counts(known)})" + (f", unknown for {rest:,} images" if rest else "")
    return facts


def _of_the_split(inputs: Inputs) -> Facts:
    facts: Facts = dict.fromkeys(("split", "disjoint", "patients_known"))
    split, config = inputs.split, inputs.config
    if split is None:
        return facts
    used = split[split["split"] != ""]
    shared = {key: int((used.groupby(key)["split"].nunique() > 1).sum()) for key in ("group", "sha256")}
    named = split["group"] != split["path"]
    copies, crossing = shared["sha256"], shared["group"]
    files = f"{count(copies, 'file')} in more than one part" if copies else "no file is in two parts"
    people = f"{count(crossing, 'patient')} in more than one part" if crossing else "no known patient is in two parts"
    facts["disjoint"] = f"{files}, {people if named.any() else 'and the patients are not known'}"
    if named.any():
        pattern = config and config.data.group_pattern
        known = f"by the file names (pattern {pattern})" if pattern else "as the data name them"
        rest = int((~named).sum())
        facts["patients_known"] = known + (f"; {count(rest, 'image')} of unknown patients" if rest else "")
    facts["split"] = _how_split(inputs, split)
    return facts


def _how_split(inputs: Inputs, split: pd.DataFrame) -> str | None:
    """None where the records do not show whether the data brought a split of their own, as a CSV may."""
    config, data = inputs.config, inputs.record.get("data")
    if config is None or not data or (data != "phantom" and Path(data).suffix.lower() == ".csv"):
        return None
    keys = config.data
    how = f"at random by {_unit(split)}, stratified by class, seed {keys.split_seed}"
    if data != "phantom":
        tops = [Path(p).relative_to(data).parts[0].lower() for p in split["path"] if Path(p).is_relative_to(data)]
        if not tops or any(top in SPLIT_NAMES for top in tops):
            return _how_ready_made(split, [SPLIT_NAMES.get(top, "") for top in tops], how)
    parts = (("validation", keys.val_per_class, keys.split[1]), ("test", keys.test_per_class, keys.split[2]))
    wanted = [f"{f'{n} images per class' if n else f'{share:g} of the images'} for {part}" for part, n, share in parts]
    return f"{how}: {join(wanted)}, the rest for training"


def _unit(split: pd.DataFrame) -> str:
    """What a random split keeps together, as far as patients are known."""
    unknown = int((split["group"] == split["path"]).sum())
    if unknown == len(split):
        return "image (patients not known)"
    return f"patient ({count(unknown, 'image')} of unknown patients singly)" if unknown else "patient"


def _how_ready_made(split: pd.DataFrame, folders: list[str], how: str) -> str | None:
    """Of data with folders of their own: which parts these decided. None where not every image shows its folder."""
    if len(folders) < len(split):
        return None
    parts = split["split"].to_numpy(str)
    if np.array_equal(parts, folders):
        return "as the folders of the data have it"
    taken = (parts == "val") & (np.array(folders) == "train")
    if not np.array_equal(parts[~taken], np.array(folders)[~taken]) or "val" in folders:
        return None
    return f"as the folders of the data have it, but validation: {taken.sum():,} of its training images, {how}"


def _of_the_images(inputs: Inputs) -> Facts:
    facts: Facts = dict.fromkeys(("unreadable", "preprocessing", "missing"))
    record, provenance, split, config = inputs.record, inputs.provenance, inputs.split, inputs.config
    facts["unreadable"] = unreadable(record.get("unreadable"), provenance.unreadable)
    recorded = provenance.recorded  # a None that is recorded: the members of an ensemble differ
    size = provenance.size if "size" in recorded else record.get("size")
    fit = provenance.fit if "fit" in recorded else config and config.data.fit
    differ = any(name in recorded and getattr(provenance, name) is None for name in ("mean", "std"))
    if size and fit and not differ:
        shape = "squashed to" if fit == "squash" else "padded to a square of"
        facts["preprocessing"] = f"8-bit grey, {shape} {size}×{size} pixels with antialiasing"
        if provenance.mean:
            mean, std = (", ".join(f"{v:g}" for v in values) for values in (provenance.mean, provenance.std))
            channels = count(len(provenance.mean), "channel")
            facts["preprocessing"] += f", {channels} normalised with mean {mean} and standard deviation {std}"
    if split is not None:
        gaps = {
            "patient": int((split["group"] == split["path"]).sum()),
            "source": int((split["source"] == "").sum()),
        }
        unknown = [f"the {name} of {gap:,} of {len(split):,} images is not known" for name, gap in gaps.items() if gap]
        facts["missing"] = join(unknown) if unknown else "patient and source are known for every image"
    return facts


def _of_the_model(inputs: Inputs) -> Facts:
    provenance, record = inputs.provenance, inputs.record
    models = provenance.models or ([record["model"]] if record.get("model") else [])
    facts: Facts = dict.fromkeys(("title", "model", "parameters", "ensemble", "tta"))
    facts["task"] = (
        f"the choice of one of {len(inputs.predictions.classes)} classes "
        f"({', '.join(inputs.predictions.classes)}) for each image"
    )
    facts["init"] = record.get("init")
    if models:
        facts["model"] = models[0] if len(models) == 1 else f"an ensemble of {join(models)}"
        facts["title"] = f"{facts['model']}, a deep-learning classifier of chest radiographs, and its evaluation"
    if provenance.parameters:
        facts["parameters"] = f"{provenance.parameters:,} parameters"
    if provenance.models:
        facts["ensemble"] = (
            "none, a single model" if len(models) == 1 else f"the mean of the probabilities of {join(models)}"
        )
    if provenance.tta is not None:
        mean = "the mean of the probabilities of each image and its mirror image"
        facts["tta"] = mean if provenance.tta else "none"
    return facts


def _of_the_training(inputs: Inputs) -> Facts:
    facts: Facts = dict.fromkeys(("training", "augmentation", "sampling", "selection"))
    config, record = inputs.config, inputs.record
    if config is not None:
        t = config.train
        facts["training"] = ", ".join(
            [
                "cross entropy" + (f" with label smoothing {t.label_smoothing:g}" if t.label_smoothing else ""),
                f"{OPTIMIZERS[t.optimizer]} with weight decay {t.weight_decay:g}",
                f"peak learning rate {t.lr:g} ({schedule(t)})",
                f"batches of {t.batch}",
                *([f"gradients clipped at norm {t.clip_norm:g}"] if t.clip_norm else []),
                *([f"the head alone for {count(t.freeze_epochs, 'epoch')}"] if t.freeze_epochs else []),
                *([f"{record['epochs']} of at most {t.epochs} epochs"] if record.get("epochs") else []),
            ]
        )
        facts["augmentation"] = augmentation(config.augment)
        even = "every class equally often, small ones repeated"
        facts["sampling"] = even if t.sampler == "weighted" else "every image once an epoch"
    weights = [Path(path).name for path in inputs.provenance.weights]
    if weights == ["best.pt"] and "best_epoch" in record:  # which only a finished run has
        facts["selection"] = f"the epoch of lowest validation loss, {record['best_epoch']} of {record['epochs']}"
    elif weights == ["last.pt"] and inputs.provenance.epoch:
        facts["selection"] = f"none, the last epoch ({inputs.provenance.epoch})"
    return facts


def _of_the_machine(inputs: Inputs) -> Facts:
    provenance, record = inputs.provenance, inputs.record
    licence = PROJECT / "LICENSE"
    commands = [text for text in (record.get("command"), provenance.command) if text]
    timings = record.get("timings") or {}
    at = f" at commit {provenance.commit}" if provenance.commit else ""
    return {
        "software": _both(_software(record.get("versions")), _software(provenance.versions)),
        "device": _both(record.get("device"), provenance.device),
        "seconds": f"{timings['train_seconds']:,.0f} s of training" if "train_seconds" in timings else None,
        "precision": _both(record.get("precision"), provenance.precision),
        "seed": str(record["seed"]) if "seed" in record else None,
        "command": "; then ".join(commands) or None,
        "commit": _both(record.get("commit"), provenance.commit),
        "code": f"this toolkit{at}" if provenance.weights else None,  # else another program made the predictions
        "licence_code": licence.read_text().split(" License")[0].strip() if licence.is_file() else None,
        "predictions": "every prediction is in predictions.csv beside this report",
    }


def _software(versions: dict[str, str] | None) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else None


def _both(training: str | None, evaluation: str | None) -> str | None:
    """What holds for the training and the evaluation; None where neither is known."""
    if training and evaluation and training != evaluation:
        return f"{training} in training, {evaluation} in the evaluation"
    return training or evaluation


def _of_the_evaluated(inputs: Inputs) -> Facts:
    """Which images were evaluated. `internal` is known only for the run's own test images, found by content."""
    facts: Facts = dict.fromkeys(("internal", "external", "overlap"))
    provenance, table, split = inputs.provenance, inputs.predictions.table, inputs.split
    images = f"{count(len(table), 'image')}{of_patients(table)}"
    where = f" of {provenance.data}" if provenance.data not in (None, "the run's own") else ""
    place = {
        "test": f", the test split{where}",
        "val": f", the validation split{where}",
        "train": f", the training images themselves{where}",
        "external": f" in {provenance.data}",
    }
    facts["n_evaluated"] = images + place.get(provenance.kind, "")
    if split is not None and _is_subset(table, split[split["split"] == "test"]):
        facts["internal"] = f"{images}, the run's own test split"
    if provenance.kind == "external":
        facts["external"] = f"{images} in {provenance.data} ({by_class(table['label'])})"
    if provenance.kind != "train":
        facts["overlap"] = trained_on(provenance.overlap, provenance.kind)
    return facts


def _of_the_results(inputs: Inputs) -> Facts:
    metrics = inputs.metrics
    entries = [metrics[name] for name in OVERALL] + [row[m] for row in metrics["per_class"].values() for m in PER_CLASS]
    known = any(found["low"] is not None for found in entries)
    methods = "; ".join(f"{name.replace('_', ' ')}: {how}" for name, how in metrics["methods"].items())
    unit = sampling_unit(inputs.predictions.table)
    headline = [f"{words(name)} {with_limits(metrics[name])}" for name in ("accuracy", "balanced_accuracy", "macro_f1")]
    small = [f"{name} ({row['support']})" for name, row in metrics["per_class"].items() if row["small"]]
    shown = ("recall", "specificity", "precision", "auroc")
    return {
        "metrics": f"{', '.join(words(m, True) for m in OVERALL)}; per class {join(words(m) for m in PER_CLASS)}",
        "intervals": f"95 %, unit of sampling: {unit} ({methods})" if known else None,
        "headline": ", ".join(headline),
        "per_class": "; ".join(
            f"{name}: {', '.join(f'{words(m)} {with_limits(row[m])}' for m in shown)}"
            for name, row in metrics["per_class"].items()
        ),
        "small_classes": f"{join(small)} images" if small else f"none has fewer than {SMALL} images",
    }


def _of_the_analysis(inputs: Inputs) -> Facts:
    metrics, predictions = inputs.metrics, inputs.predictions
    wrong = np.flatnonzero(~predictions.correct)
    pairs = pd.Series([f"{predictions.table['label'][i]} called {predictions.table['predicted'][i]}" for i in wrong])
    temperature, points, groups = (metrics[name] for name in ("temperature", "operating_points", "subgroups"))
    calibration = f"ECE {with_limits(metrics['ece'])}"
    if temperature:
        done = "applied" if temperature["applied"] else "not applied"
        calibration += f", temperature {temperature['value']:.2f} fitted on {temperature['fitted_on']}, {done}"
    facts: Facts = dict.fromkeys(("operating_points", "subgroups", "explainability"))
    facts["calibration"] = calibration
    most = f" ({counts(pairs)})" if len(wrong) else ""
    facts["failures"] = f"{len(wrong):,} of {len(predictions):,} images{most}"
    if points and inputs.provenance.kind != "val":  # which chose them
        facts["operating_points"] = "; ".join(
            f"{p['class']} from {threshold(p['threshold'])}, for a sensitivity of {p['wanted_sensitivity']:g} on "
            f"{p['chosen_on']['n']} validation images"
            for p in points
        )
    if groups:
        facts["subgroups"] = "; ".join(f"by {column}, {_accuracies(rows)}" for column, rows in groups.items())
    if inputs.maps.table is not None:
        maps = inputs.maps.table
        names = sorted(maps["method"].unique())
        methods = join(METHODS[name].title if name in METHODS else name for name in names)
        images = count(maps["path"].nunique(), "image")
        facts["explainability"] = f"{methods} of {images}, {len(maps)} maps" + "".join(
            f", {number} {state.counted}"
            for state, number in count_flawed(maps["status"]).items()
            if number or state is MapState.EMPTY
        )
    return facts


def _accuracies(rows: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{row['value']} {with_limits(row['accuracy'])}" for row in rows[:MOST_NAMES])
    return f"accuracy {shown}" + (", and others in the table of this report" if len(rows) > MOST_NAMES else "")
