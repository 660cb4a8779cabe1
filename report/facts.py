"""Facts about a run and its evaluation, as phrases that fill in the reporting checklist and the run card.

A phrase is lower case, without a full stop. A fact that the records do not show is None; its items then stay blank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import SPLITS, TrainConfig
from dataset.layouts import SPLIT_NAMES
from evaluation import phrases
from evaluation.metrics.table import OVERALL, PER_CLASS, SMALL
from localization.methods.table import METHODS
from localization.states import MapState, count_flawed
from report.inputs import Inputs
from utils import PROJECT, count

Facts = dict[str, str | None]
OPTIMIZERS = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}
SHOWN = ("recall", "specificity", "precision", "auroc")  # of each class


def collect_facts(inputs: Inputs) -> Facts:
    """Return every fact that `checklist.yaml` and the run card may name; unknown ones are None."""
    groups = [_data, _preprocessing, _model, _training, _machine, _evaluated, _results, _analysis]
    facts = defaultdict(lambda: None)
    for group in groups if inputs.split is None else [*groups, _images, _split]:
        facts |= group(inputs)
    return facts


def _is_subset(predictions: pd.DataFrame, records: pd.DataFrame) -> bool:
    """Return whether every evaluated image is one of `records`, by content."""
    return bool((predictions["sha256"] != "").all() and predictions["sha256"].isin(records["sha256"]).all())


def _data(inputs: Inputs) -> Facts:
    """Describe the run's own data, even if other images are evaluated."""
    data = inputs.record.get("data")
    phantom = "the phantom, synthetic radiographs that this toolkit draws"
    return {
        "data": phantom if data == "phantom" else data and f"the images in {data}",
        "unreadable": phrases.unreadable(inputs.record.get("unreadable"), inputs.provenance.unreadable),
    }


def _images(inputs: Inputs) -> Facts:
    split = inputs.split
    tables = [(name, split[split["split"] == name]) for name in SPLITS]
    sizes = [f"{name} {count(len(t), 'image')}{phrases.of_patients(t)}" for name, t in tables if len(t)]
    drawn = inputs.record.get("data") == "phantom" and _is_subset(inputs.predictions.table, split)
    sources = split["source"][split["source"] != ""]
    rest = len(split) - len(sources)
    more = f", unknown for {count(rest, 'image')}" if rest else ""
    gaps = {"patient": _unknown_patients(split), "source": rest}
    unknown = [f"the {name} of {gap:,} of {len(split):,} images is unknown" for name, gap in gaps.items() if gap]
    return {
        "synthetic": "every image is synthetic, drawn by this toolkit" if drawn else None,
        "n_by_split": ", ".join(sizes),
        "n_by_class": phrases.by_class(split["label"]),
        "sources": f"{sources.nunique()} ({phrases.counts(sources)}){more}" if len(sources) else None,
        "missing": phrases.join(unknown) if unknown else "patient and source are known for every image",
    }


def _split(inputs: Inputs) -> Facts:
    split, config = inputs.split, inputs.config
    used = split[split["split"] != ""]
    copies, crossing = (int((used.groupby(key)["split"].nunique() > 1).sum()) for key in ("sha256", "group"))
    files = f"{count(copies, 'file')} in more than one split" if copies else "no file is in two splits"
    people = f"{count(crossing, 'patient')} in more than one split" if crossing else "no known patient is in two splits"
    pattern = config and config.data.group_pattern
    source = f"from the file names (pattern {pattern})" if pattern else "as recorded in the data"
    unknown = _unknown_patients(split)
    none_known = unknown == len(split)
    rest = f"; {count(unknown, 'image')} of unknown patients" if unknown else ""
    return {
        "split": _how_split(inputs, split),
        "disjoint": f"{files}, {'and the patients are unknown' if none_known else people}",
        "patients_known": None if none_known else source + rest,
    }


def _unknown_patients(split: pd.DataFrame) -> int:
    """Return the number of images whose patient is unknown."""
    return int((split["group"] == split["path"]).sum())


def _how_split(inputs: Inputs, split: pd.DataFrame) -> str | None:
    """Return how the data were split; None if the data may define the split themselves, as a CSV can."""
    config, data = inputs.config, inputs.record.get("data")
    if config is None or not data or Path(data).suffix.lower() == ".csv":
        return None
    keys = config.data
    how = f"at random by {_unit(split)}, stratified by class, seed {keys.split_seed}"
    if data != "phantom":
        tops = [Path(p).relative_to(data).parts[0].lower() for p in split["path"] if Path(p).is_relative_to(data)]
        if not tops or any(top in SPLIT_NAMES for top in tops):
            return _how_ready_made(split, [SPLIT_NAMES.get(top, "") for top in tops], how)
    splits = (("validation", keys.val_per_class, keys.split[1]), ("test", keys.test_per_class, keys.split[2]))
    sizes = [f"{f'{n} images per class' if n else f'{share:g} of the images'} for {name}" for name, n, share in splits]
    return f"{how}: {phrases.join(sizes)}, the rest for training"


def _unit(split: pd.DataFrame) -> str:
    """Return the unit that a random split keeps together."""
    unknown = _unknown_patients(split)
    if unknown == len(split):
        return "image (patients unknown)"
    return f"patient ({count(unknown, 'image')} of unknown patients split individually)" if unknown else "patient"


def _how_ready_made(split: pd.DataFrame, folders: list[str], how: str) -> str | None:
    """Return which splits the folders of the data define; None if some images are not in such a folder."""
    if len(folders) < len(split):
        return None
    other = split["split"] != folders
    moved = int(other.sum())
    if moved and ("val" in folders or {*split["split"][other]} != {"val"} or {*np.array(folders)[other]} != {"train"}):
        return None
    rest = f", with {count(moved, 'training image')} moved to validation, {how}" if moved else ""
    return f"as the folders of the data define it{rest}"


def _preprocessing(inputs: Inputs) -> Facts:
    """Describe the preprocessing; nothing if it is unknown, or differs within an ensemble (a recorded None)."""
    provenance, config = inputs.provenance, inputs.config
    size = provenance.size if "size" in provenance.recorded else inputs.record.get("size")
    fit = provenance.fit if "fit" in provenance.recorded else config and config.data.fit
    mean, std = provenance.mean, provenance.std
    if not (size and fit) or any(getattr(provenance, n) is None for n in ("mean", "std") if n in provenance.recorded):
        return {}
    shape = "squashed to" if fit == "squash" else "padded to a square of"
    text = f"8-bit grey, {shape} {size}×{size} pixels with antialiasing"
    if mean:
        numbers = [", ".join(f"{value:g}" for value in values) for values in (mean, std)]
        text += f", {count(len(mean), 'channel')} normalised with mean {numbers[0]} and standard deviation {numbers[1]}"
    return {"preprocessing": text}


def _model(inputs: Inputs) -> Facts:
    provenance, record, classes = inputs.provenance, inputs.record, inputs.predictions.classes
    models = list(provenance.models) or ([record["model"]] if record.get("model") else [])
    names = phrases.join(models or [""])
    model = (names if len(models) == 1 else f"an ensemble of {names}") if models else None
    members = "none, a single model" if len(models) == 1 else f"the mean of the probabilities of {names}"
    mirrored = "the mean of the probabilities of each image and its mirror image" if provenance.tta else "none"
    return {
        "task": f"classification of each image as one of {len(classes)} classes ({', '.join(classes)})",
        "init": record.get("init"),
        "model": model,
        "title": model and f"{model}, a deep-learning classifier of chest radiographs, and its evaluation",
        "parameters": f"{provenance.parameters:,} parameters" if provenance.parameters else None,
        "ensemble": members if provenance.models else None,
        "tta": None if provenance.tta is None else mirrored,
    }


def _training(inputs: Inputs) -> Facts:
    config, record = inputs.config, inputs.record
    facts = {}
    if config is not None:
        even = "every class equally often, with small classes repeated"
        facts["training"] = _optimisation(config.train, record.get("epochs"))
        facts["augmentation"] = phrases.augmentation(config.augment)
        facts["sampling"] = even if config.train.sampler == "weighted" else "every image once per epoch"
    weights = [Path(path).name for path in inputs.provenance.weights]
    if weights == ["best.pt"] and "best_epoch" in record:  # recorded by finished runs only
        facts["selection"] = f"the epoch with the lowest validation loss, {record['best_epoch']} of {record['epochs']}"
    elif weights == ["last.pt"] and inputs.provenance.epoch:
        facts["selection"] = f"the last epoch ({inputs.provenance.epoch}), not selected"
    return facts


def _optimisation(train: TrainConfig, epochs: int | None) -> str:
    settings = (
        "cross entropy" + (f" with label smoothing {train.label_smoothing:g}" if train.label_smoothing else ""),
        f"{OPTIMIZERS[train.optimizer]} with weight decay {train.weight_decay:g}",
        f"peak learning rate {train.lr:g} ({phrases.schedule(train)})",
        f"batches of {train.batch}",
        train.clip_norm and f"gradients clipped at norm {train.clip_norm:g}",
        train.freeze_epochs and f"only the head trained for {count(train.freeze_epochs, 'epoch')}",
        epochs and f"{epochs} of at most {train.epochs} epochs",
    )
    return ", ".join(filter(None, settings))


def _machine(inputs: Inputs) -> Facts:
    provenance, record = inputs.provenance, inputs.record
    licence = PROJECT / "LICENSE"
    seconds = (record.get("timings") or {}).get("train_seconds")
    at = f" at commit {provenance.commit}" if provenance.commit else ""
    return {
        "software": _both(_software(record.get("versions")), _software(provenance.versions)),
        **{key: _both(record.get(key), getattr(provenance, key)) for key in ("device", "precision", "commit")},
        "seconds": None if seconds is None else f"{seconds:,.0f} s of training",
        "seed": str(record["seed"]) if "seed" in record else None,
        "command": "; then ".join(filter(None, (record.get("command"), provenance.command))) or None,
        "code": f"this toolkit{at}" if provenance.weights else None,  # otherwise another program made the predictions
        "licence_code": licence.read_text().split(" License")[0].strip() if licence.is_file() else None,
        "predictions": "every prediction is in predictions.csv beside this report",
    }


def _software(versions: Mapping[str, str] | None) -> str | None:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else None


def _both(training: str | None, evaluation: str | None) -> str | None:
    """Return one value if training and evaluation agree, else both; None if neither is known."""
    if training and evaluation and training != evaluation:
        return f"{training} in training, {evaluation} in the evaluation"
    return training or evaluation


def _evaluated(inputs: Inputs) -> Facts:
    """Describe the evaluated images. `internal` is known only for the run's own test images, found by content."""
    provenance, table, split = inputs.provenance, inputs.predictions.table, inputs.split
    kind, data = provenance.kind, provenance.data
    images = f"{count(len(table), 'image')}{phrases.of_patients(table)}"
    names = {"test": "the test split", "val": "the validation split", "train": "the training images"}
    place = f", {names[kind]}" if kind in names else f" in {data}" if kind == "external" else ""
    where = f" of {data}" if kind in names and data not in (None, "the run's own") else ""
    own = split is not None and _is_subset(table, split[split["split"] == "test"])
    return {
        "n_evaluated": images + place + where,
        "internal": f"{images}, the run's own test split" if own else None,
        "external": f"{images}{place} ({phrases.by_class(table['label'])})" if kind == "external" else None,
        "overlap": phrases.trained_on(provenance.overlap, kind) if kind != "train" else None,
    }


def _results(inputs: Inputs) -> Facts:
    metrics = inputs.metrics
    rows = metrics["per_class"]
    entries = [metrics[name] for name in OVERALL] + [row[m] for row in rows.values() for m in PER_CLASS]
    known = any(entry["low"] is not None for entry in entries)
    methods = "; ".join(f"{name.replace('_', ' ')}: {how}" for name, how in metrics["methods"].items())
    unit = phrases.sampling_unit(inputs.predictions.table)
    overall = ", ".join(phrases.words(name, True) for name in OVERALL)
    small = [f"{name} ({row['support']})" for name, row in rows.items() if row["small"]]
    return {
        "metrics": f"{overall}; per class {phrases.join(map(phrases.words, PER_CLASS))}",
        "intervals": f"95 %, sampling unit: {unit} ({methods})" if known else None,
        "headline": _values(metrics, ("accuracy", "balanced_accuracy", "macro_f1")),
        "per_class": "; ".join(f"{name}: {_values(row, SHOWN)}" for name, row in rows.items()),
        "small_classes": f"{phrases.join(small)} images" if small else f"none has fewer than {SMALL} images",
    }


def _values(entries: dict[str, Any], names: Iterable[str]) -> str:
    return ", ".join(f"{phrases.words(name)} {phrases.with_limits(entries[name])}" for name in names)


def _analysis(inputs: Inputs) -> Facts:
    metrics, predictions = inputs.metrics, inputs.predictions
    table = predictions.table[~predictions.correct]
    errors = phrases.counts(table["label"] + " predicted as " + table["predicted"])
    points, groups = metrics["operating_points"], metrics["subgroups"]
    return {
        "calibration": f"ECE {phrases.with_limits(metrics['ece'])}{_temperature(metrics['temperature'])}",
        "failures": f"{len(table):,} of {len(predictions):,} images" + (f" ({errors})" if errors else ""),
        "operating_points": "; ".join(map(_threshold, points)) if points and inputs.provenance.kind != "val" else None,
        "subgroups": "; ".join(f"by {name}, {_accuracies(rows)}" for name, rows in groups.items()) if groups else None,
        "explainability": None if inputs.maps.table is None else _maps(inputs.maps.table),
    }


def _temperature(temperature: dict[str, Any] | None) -> str:
    if not temperature:
        return ""
    applied = "applied" if temperature["applied"] else "not applied"
    return f", temperature {temperature['value']:.2f} fitted on {temperature['fitted_on']}, {applied}"


def _threshold(point: dict[str, Any]) -> str:
    images = count(point["chosen_on"]["n"], "validation image")
    target = f"for a sensitivity of {point['wanted_sensitivity']:g} on {images}"
    return f"{point['class']} from {phrases.threshold(point['threshold'])}, {target}"


def _maps(maps: pd.DataFrame) -> str:
    methods = phrases.join(METHODS[name].title if name in METHODS else name for name in sorted(maps["method"].unique()))
    states = count_flawed(maps["status"]).items()
    flawed = "".join(f", {number} {state.counted}" for state, number in states if number or state is MapState.EMPTY)
    return f"{methods} of {count(maps['path'].nunique(), 'image')}, {count(len(maps), 'map')}{flawed}"


def _accuracies(rows: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{row['value']} {phrases.with_limits(row['accuracy'])}" for row in rows[: phrases.MOST_NAMES])
    return f"accuracy {shown}" + (", and more in the table of this report" if len(rows) > phrases.MOST_NAMES else "")
