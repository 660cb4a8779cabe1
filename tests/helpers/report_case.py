"""A small evaluation and its run, made by hand, and a parser for their reports."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from config import Config
from evaluation.metrics.temperature import Temperature
from evaluation.predictions import Predictions
from evaluation.provenance import Provenance
from evaluation.results import Evaluation, write_results
from report.page import write_report

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
VOID = {"meta", "link", "img", "br", "hr", "input"}
CHECKLIST = yaml.safe_load((Path(__file__).parents[2] / "report" / "checklist.yaml").read_text())["standards"]


@dataclass
class Element:
    """An element of a page, with the text of itself and its children."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, tag: str = "", class_: str = "", **attributes: str) -> list[Element]:
        """Return all descendants with this tag, this class and these attributes."""
        elements = []
        for child in self.children:
            if (
                tag in ("", child.tag)
                and class_ in ("", *child.attributes.get("class", "").split())
                and attributes.items() <= child.attributes.items()
            ):
                elements.append(child)
            elements += child.find(tag, class_, **attributes)
        return elements

    def words(self) -> str:
        return " ".join(self.text.split())


class Page(HTMLParser):
    """A page as a tree of elements; mismatched tags are an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.root = self.here = Element("", {}, None)
        self.feed(self.source)
        self.close()
        assert self.here is self.root, f"<{self.here.tag}> is never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.here)
        self.here.children.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.here.tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        element = self.here
        while element is not None:
            element.text += data
            element = element.parent


def draw_image(path: Path, number: int, width: int, height: int) -> np.ndarray:
    """Write a smooth image without repetition as PNG: (height, width) uint8."""
    y, x = np.mgrid[:height, :width] / 20
    pixels = (120 + 60 * np.sin(x + number) + 60 * np.cos(0.7 * y + number)).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_overlay(path: Path, pixels: np.ndarray, boxed: bool = True) -> None:
    """Draw the image at twice its size on white with margins, as localization does, without a map."""
    height, width = pixels.shape
    ground = Image.new("RGB", (2 * width + 130, 2 * height + 50), "white")
    ground.paste(Image.fromarray(pixels).resize((2 * width, 2 * height), Image.Resampling.NEAREST), (10, 40))
    text = PngInfo()
    if boxed:
        text.add_text("Radiograph", f"10,40,{10 + 2 * width},{40 + 2 * height}")
    path.parent.mkdir(parents=True, exist_ok=True)
    ground.save(path, pnginfo=text)


@dataclass
class Case:
    """A complete run folder, with its evaluation."""

    run: Path
    table: pd.DataFrame
    folder: Path

    def report(self, run: bool = True) -> Page:
        return Page(write_report(self.folder, self.run if run else None))

    def metrics(self, **changes: Any) -> dict[str, Any]:
        """Change metrics.json and return it."""
        metrics = json.loads((self.folder / "metrics.json").read_text())
        metrics |= {name: value for name, value in changes.items() if name != "evaluation"}
        metrics["evaluation"] = metrics["evaluation"] | changes.get("evaluation", {})
        (self.folder / "metrics.json").write_text(json.dumps(metrics))
        return metrics


def make_table(n: int, classes: list[str], seed: int = 0, skill: float = 1.5) -> pd.DataFrame:
    """Return the predictions of a fairly good model, with two images per patient."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    logits = rng.normal(size=(n, len(classes))) * 1.2
    logits[np.arange(n), labels] += skill
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return pd.DataFrame(
        {
            "path": [f"/gone/{classes[k]}/{i}.png" for i, k in enumerate(labels)],
            "sha256": [f"{i:064x}" for i in range(n)],
            "label": [classes[k] for k in labels],
            **{f"p_{name}": p[:, k] for k, name in enumerate(classes)},
            "group": [f"patient {i // 2}" for i in range(n)],
            "source": [("site a", "site b", "site c")[i // 2 % 3] for i in range(n)],
        }
    )


ABOUT = {
    "kind": "test",
    "title": "resnet18, test split",
    "data": "the run's own",
    "weights": ["runs/case/best.pt"],
    "fingerprints": ["f1"],
    "unreadable": 0,
    "models": ["resnet18"],
    "tta": False,
    "precision": "fp32",
    "device": "a processor",
    "command": "python test.py --weights runs/case",
    "commit": "abcdef123456",
    "versions": {"torch": "2.15.0"},
    "finished": "2026-11-23T12:00:00Z",
    "overlap": {"trained_on": 0, "allowed": False, "validated_on": 0},
    "epoch": 2,
    "parameters": 11178564,
    "mean": [0.5],
    "std": [0.25],
    "size": 64,
    "fit": "squash",
}


def write_evaluation(predictions: Predictions, folder: Path, about: dict[str, Any], **known: Any) -> None:
    """Write predictions and metrics, without figures; `about` is what metrics.json has under `evaluation`."""
    provenance = Provenance.from_json(about)
    write_results(Evaluation(predictions=predictions, folder=folder, provenance=provenance, **known), quick=True)


def make_case(parent: Path, classes: list[str] = CLASSES, n: int = 80) -> Case:
    """Make a run of two epochs with `n` test images, and with the images and maps of its errors."""
    run, table = parent / "case", make_table(n, classes)
    folder = run / "test"
    folder.mkdir(parents=True)
    wrong = np.flatnonzero(table["label"] != table[[f"p_{c}" for c in classes]].idxmax(axis=1).str.removeprefix("p_"))
    rows = []
    for i in wrong:
        path = parent / "data" / f"image {i}.png"
        pixels = draw_image(path, i, 96, 64)
        table.loc[i, ["path", "sha256"]] = str(path), sha256(path)
        draw_overlay(run / "cams" / f"{i:04d}.png", pixels)
        target = table.loc[i, [f"p_{c}" for c in classes]].astype(float).idxmax().removeprefix("p_")
        rows.append({"file": f"{i:04d}.png", "path": str(path), "target": target, "method": "gradcam", "status": "ok"})
    pd.DataFrame(rows).to_csv(run / "cams" / "cams.csv", index=False)
    (run / "cams" / "cams.json").write_text(json.dumps({"weights": "f1", "kind": "test"}))
    Image.new("RGB", (400, 120), "grey").save(run / "cams" / "mean_gradcam.png")
    write_run(run, table)
    predictions = Predictions(table, classes)
    temperature = Temperature(value=1.31, fitted_on="val", n=40, applied=False)
    validation = Predictions(make_table(40, classes, seed=1), classes)
    write_evaluation(predictions, folder, ABOUT, validation=validation, temperature=temperature)
    return Case(run, table, folder)


def write_run(run: Path, table: pd.DataFrame) -> None:
    """Write config.yaml, run.json, history.csv and split.csv with the test images and twice as many for training."""
    record = {
        "status": "finished",
        "command": "python train.py preset=demo",
        "commit": "abcdef123456",
        "versions": {"torch": "2.15.0"},
        "model": "resnet18",
        "seed": 3,
        "device": "a processor",
        "precision": "bf16",
        "init": "random weights (--init none)",
        "size": 64,
        "data": "phantom",
        "unreadable": 0,
        "epochs": 2,
        "best_epoch": 2,
        "timings": {"train_seconds": 12.3, "images_per_second": 50.0},
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(yaml.safe_dump(asdict(Config())))
    (run / "history.csv").write_text(
        "epoch,learning_rate,train_loss,train_accuracy,valid_loss,valid_accuracy,valid_macro_f1,seconds,images_per_second\n"
        "1,0.001,1.2,0.5,1.1,0.55,0.5,6,50\n2,0.0005,0.8,0.7,0.9,0.65,0.6,6,50\n"
    )
    test = table[["path", "sha256", "label", "group", "source"]].assign(lung_mask="", lesion_mask="", split="test")
    parts = [test]
    for k in range(2):
        names = {c: [f"{k}-{value}" for value in test[c]] for c in ("path", "sha256", "group")}
        parts.append(test.assign(split="train", **names))
    pd.concat(parts).to_csv(run / "split.csv", index=False)


def wrong_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the wrong predictions with `predicted` and `confidence`, the most confident first."""
    p = table[[c for c in table if c.startswith("p_")]]
    table = table.assign(predicted=p.idxmax(axis=1).str.removeprefix("p_"), confidence=p.max(axis=1))
    return table[table["label"] != table["predicted"]].sort_values("confidence", ascending=False)
