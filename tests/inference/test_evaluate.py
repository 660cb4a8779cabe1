"""test.py beyond a run's own test split: overlap, other hospitals, ensembles, test-time augmentation, tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.metrics.temperature import calibrated, fit_temperature, scale
from evaluation.predictions import Predictions, read_predictions
from tests.helpers.verbs import Result, ok, refused

pytestmark = pytest.mark.slow

Verb = Callable[..., Result]
QUICK = ("--quick",)


def _metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, as training left it, that a test may change."""
    others = shutil.ignore_patterns("test*", "val", "external-*", "cams", "best.*.*")
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=others))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another hospital: a phantom of another seed with two classes renamed, one of them unknown."""
    from dataset.phantom.write import write_phantom

    folder = write_phantom(tmp_path_factory.mktemp("other") / "hospital", count=60, seed=11)
    (folder / "Normal").rename(folder / "Healthy")
    (folder / "Viral Pneumonia").rename(folder / "Influenza")
    (folder / "phantom.json").unlink()
    return folder


def test_images_that_were_trained_on_are_refused(verb: Verb, run: Path, phantom: Path, tmp_path: Path) -> None:
    shutil.copy(run / "best.pt", tmp_path / "model.pt")
    split = ("--weights", tmp_path / "model.pt", "--data", phantom, "data.split_seed=5", *QUICK)
    result = verb("test.py", *split)
    refused(result, "TRAINED", "--kind test", "--allow-overlap")
    named = [word for word in result.err.replace(",", " ").replace("(", " ").split() if word.endswith(".png")]
    trained = {bytes(row).hex() for row in torch.load(run / "best.pt", weights_only=True)["train_hashes"].numpy()}
    from dataset.cache import hash_files

    assert named
    assert set(hash_files(named, tmp_path, 1)) <= trained
    assert not (tmp_path / "model-test-phantom").exists()
    out = ok(verb("test.py", *split, "--allow-overlap"))
    metrics = _metrics(tmp_path / "model-test-phantom")
    table = pd.read_csv(tmp_path / "model-test-phantom" / "predictions.csv")
    assert metrics["evaluation"]["overlap"]["trained_on"] == table["sha256"].isin(trained).sum() > 0
    assert metrics["warnings"][0]["level"] == "severe"
    assert "trained on" in metrics["warnings"][0]["text"]
    assert "WARNING: The model was trained on" in out
    refused(verb("test.py", "--weights", run, "--external", phantom), "TRAINED", "--external")
    ok(verb("test.py", "--weights", run, "--kind", "train", *QUICK))
    assert "training images" in _metrics(run / "train")["warnings"][0]["text"]


def test_another_hospital(verb: Verb, run: Path, other: Path, tmp_path: Path) -> None:
    """Classes are mapped by name; those unknown to the model are counted and left out."""
    (tmp_path / "names.yaml").write_text("Healthy: Normal\n")
    out = ok(verb("test.py", "--weights", run, "--external", other, "--map", tmp_path / "names.yaml"))
    folder = run / "external-hospital"
    metrics, table = _metrics(folder), pd.read_csv(folder / "predictions.csv")
    flu = len(list((other / "Influenza" / "images").iterdir()))
    assert metrics["evaluation"]["unknown_classes"] == {"Influenza": flu}
    assert f"{flu} images of class 'Influenza'" in out
    assert sorted(table["label"].unique()) == ["COVID", "Lung_Opacity", "Normal"]
    assert (table["label"] == "Normal").sum() == len(list((other / "Healthy" / "images").iterdir()))
    assert len(table) == 60 - flu
    assert metrics["per_class"]["Viral Pneumonia"]["support"] == 0
    assert metrics["per_class"]["Viral Pneumonia"]["recall"]["value"] is None
    assert (folder / "report.html").is_file()
    assert metrics["patients"] == len(table)  # the run's pattern of patients is not this hospital's
    pattern = r"^(.+-P\d+)-\d+$"
    words = ("--map", "Healthy=Normal", "--map", "Influenza=Viral Pneumonia", "--group-pattern", pattern)
    ok(verb("test.py", "--weights", run, "--external", other, *words, *QUICK))
    assert _metrics(folder)["n"] == 60
    assert _metrics(folder)["patients"] < 60
    for image in (other / "COVID" / "images").iterdir():  # names that no pattern of the run knows
        target = tmp_path / "foreign" / "COVID" / f"{image.stem.replace('-', '')[::-1]}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    ok(verb("test.py", "--weights", run, "--external", tmp_path / "foreign", *QUICK))
    same = tmp_path / "elsewhere" / "foreign"
    shutil.copytree(tmp_path / "foreign", same)
    refused(verb("test.py", "--weights", run, "--external", same), "external-foreign", "--output")
    one = tmp_path / "covid only"
    shutil.copytree(other / "COVID", one / "COVID")
    ok(verb("test.py", "--weights", run, "--external", one))
    single = _metrics(run / "external-covid only")
    assert single["macro_auroc"]["value"] is None
    assert single["balanced_accuracy"]["value"] == single["per_class"]["COVID"]["recall"]["value"]


def test_bad_external(verb: Verb, run: Path, other: Path, phantom: Path, tmp_path: Path) -> None:
    def refuses(*argv: object, words: tuple[str, ...]) -> None:
        refused(verb("test.py", "--weights", run, *argv), *words)

    refuses("--external", tmp_path / "nope", words=("--external", "nope"))
    (tmp_path / "empty").mkdir()
    refuses("--external", tmp_path / "empty", words=("--external", "no images"))
    (tmp_path / "strange").mkdir()
    shutil.copytree(other / "COVID", tmp_path / "strange" / "Covid-19")
    refuses("--external", tmp_path / "strange", words=("none of its classes", "Covid-19", "Viral Pneumonia", "--map"))
    refuses("--external", other, "--map", "Helthy=Normal", words=("--map", "Helthy", "Healthy"))
    refuses("--external", other, "--map", "Healthy=Norml", words=("--map", "Norml", "Normal"))
    refuses("--external", other, "--map", "Healthy", words=("--map Healthy", "THEIRS=OURS"))
    refuses("--external", other, "--map", "Healthy=Normal", "--map", "Healthy=COVID", words=("Healthy", "both"))
    refuses("--external", other, "--map", tmp_path / "no.yaml", words=("--map", "no.yaml"))
    (tmp_path / "list.yaml").write_text("- Healthy\n")
    refuses("--external", other, "--map", tmp_path / "list.yaml", words=("list.yaml", "their class: our class"))
    refuses("--map", "Healthy=Normal", words=("--map", "--external"))
    refuses("--external", other, "--kind", "val", words=("--external", "--kind"))
    refuses("--external", other, "--data", phantom, words=("--external", "--data"))
    refuses("--external", other, "--subset", words=("--external", "--subset"))
    refuses("--sensitivity", 1.5, words=("--sensitivity 1.5",))
    refuses("--prevalence", "Flu=0.1", words=("--prevalence Flu=0.1", "COVID"))
    refuses("--prevalence", "COVID=2", words=("--prevalence COVID=2",))
    refuses("--prevalence", "COVID=x", words=("--prevalence COVID=x",))
    content = torch.load(run / "best.pt", weights_only=True)
    del content["classes"]
    torch.save(content, tmp_path / "nameless.pt")
    refused(verb("test.py", "--weights", tmp_path / "nameless.pt"), "nameless.pt", "classes")


def test_an_ensemble_is_the_mean(verb: Verb, run: Path, phantom: Path, tmp_path: Path) -> None:
    """Two checkpoints; the second has another order of classes and another input size."""
    second = Path(shutil.copytree(run, tmp_path / "second"))
    content = torch.load(second / "best.pt", weights_only=True)
    order = [2, 0, 3, 1]
    content["classes"] = [content["classes"][i] for i in order]
    for name in ("fc.weight", "fc.bias"):
        content["model"][name] = 3 * content["model"][name][order]
    content["size"] = 96
    torch.save(content, second / "best.pt")
    save = ("--save", tmp_path, *QUICK)
    ok(verb("test.py", "--weights", run, *save))
    ok(verb("test.py", "--weights", second, *save))
    ok(verb("test.py", "--weights", run, second, "--save", tmp_path))
    (folder,) = tmp_path.glob("ensemble-run+second-*")
    alone = [read_predictions(p / "test" / "predictions.csv") for p in (run, second)]
    both = read_predictions(folder / "test" / "predictions.csv")
    by_name = alone[1].table.set_index("path").loc[both.table["path"]]
    expected = [(alone[0].table[f"p_{name}"].to_numpy() + by_name[f"p_{name}"].to_numpy()) / 2 for name in both.classes]
    np.testing.assert_allclose(both.probabilities, np.transpose(expected), atol=1e-6)
    about = _metrics(folder / "test")["evaluation"]
    assert len(about["weights"]) == 2
    assert _metrics(folder / "test")["temperature"]["n"] == (pd.read_csv(run / "split.csv")["split"] == "val").sum()
    refused(verb("test.py", "--weights", run, run / "best.pt"), "--weights", "twice")
    content["classes"] = ["COVID", "Lung_Opacity", "Normal", "Flu"]
    torch.save(content, tmp_path / "other.pt")
    refused(verb("test.py", "--weights", run, tmp_path / "other.pt"), "other.pt", "Flu", "differ")


def test_mirrored_views_are_averaged(verb: Verb, run: Path) -> None:
    from config import load_run_config
    from dataset.loading import load_dataset
    from experiment.checkpoint import load_checkpoint
    from inference.predict import softmax

    ok(verb("test.py", "--weights", run, "--tta", *QUICK))
    averaged = read_predictions(run / "test-tta" / "predictions.csv")
    checkpoint = load_checkpoint(run / "best.pt")
    part = load_dataset(load_run_config(run / "config.yaml").data, 64, run_split=run / "split.csv").images("test")
    model = checkpoint.model()
    (batch,) = part.batches(torch.device("cpu"), len(part), checkpoint.architecture)
    with torch.inference_mode():
        views = [model(x).numpy() for x in (batch.inputs, batch.inputs.flip(-1))]
    expected = np.mean([softmax(v, part.records) for v in views], axis=0)
    np.testing.assert_allclose(averaged.probabilities, expected, atol=1e-5)
    assert _metrics(run / "test-tta")["evaluation"]["tta"]


def test_the_temperature_comes_from_validation_alone(verb: Verb, run: Path) -> None:
    ok(verb("test.py", "--weights", run))
    stored = json.loads((run / "best.temperature.json").read_text())
    validation = read_predictions(run / "best.validation.csv")
    split = pd.read_csv(run / "split.csv")
    assert set(validation.table["sha256"]) == set(split[split["split"] == "val"]["sha256"])
    assert stored["value"] == pytest.approx(fit_temperature(validation.probabilities, validation.labels))
    plain = read_predictions(run / "test" / "predictions.csv")
    points = _metrics(run / "test")["operating_points"]
    assert {row["chosen_on"]["n"] for row in points} == {len(validation)}
    row = next(row for row in points if row["class"] == "Normal" and row["wanted_sensitivity"] == 0.9)
    number = plain.classes.index("Normal")
    called = validation.probabilities[validation.labels == number, number] >= row["threshold"]
    assert called.mean() >= 0.9
    ok(verb("test.py", "--weights", run, "--calibrated"))
    scaled = read_predictions(run / "test-calibrated" / "predictions.csv")
    np.testing.assert_allclose(scaled.probabilities, scale(plain.probabilities, stored["value"]), atol=1e-6)
    np.testing.assert_array_equal(scaled.predicted, plain.predicted)
    assert _metrics(run / "test-calibrated")["temperature"]["applied"]
    np.testing.assert_allclose(scaled.confidence, scaled.table["confidence"], atol=1e-12)
    # thresholds are chosen on the scale that they are used on
    sharp = calibrated(validation, stored["value"])
    for row in _metrics(run / "test-calibrated")["operating_points"]:
        number = sharp.classes.index(row["class"])
        reference = np.sort(sharp.probabilities[sharp.labels == number, number])
        assert row["threshold"] in reference
        assert (reference >= row["threshold"]).mean() >= row["wanted_sensitivity"]
    ok(verb("test.py", "--weights", run, "--kind", "val"))
    assert _metrics(run / "val")["operating_points"] == []
    ok(verb("test.py", "--weights", run, "--precision", "bf16"))
    assert (run / "val" / "report.html").is_file()  # what was asked for stays


def test_a_temperature_of_other_weights_is_not_used(verb: Verb, run: Path, phantom: Path, tmp_path: Path) -> None:
    ok(verb("test.py", "--weights", run))
    content = torch.load(run / "best.pt", weights_only=True)
    content["model"]["fc.weight"] *= 4
    torch.save(content, run / "best.pt")
    before = json.loads((run / "best.temperature.json").read_text())["value"]
    ok(verb("test.py", "--weights", run))
    assert json.loads((run / "best.temperature.json").read_text())["value"] > 1.5 * before
    # beside a checkpoint that was moved away from its run it goes on to serve
    shutil.copy(run / "best.pt", tmp_path / "m.pt")
    away = ("--weights", tmp_path / "m.pt", "--data", phantom, "--calibrated", "--allow-overlap")
    refused(verb("test.py", *away), "--calibrated", "temperature")
    shutil.copy(run / "best.temperature.json", tmp_path / "m.temperature.json")
    ok(verb("test.py", *away))
    assert _metrics(tmp_path / "m-test-calibrated-phantom")["temperature"]["applied"]


def test_a_table_of_another_program(verb: Verb, run: Path, tmp_path: Path) -> None:
    ok(verb("test.py", "--weights", run))
    recorded = pd.read_csv(run / "test" / "predictions.csv")
    table = recorded.drop(columns=["sha256", "predicted", "confidence", "source"])
    table = table.assign(sex=["f", "m"] * (len(recorded) // 2))
    table.to_csv(tmp_path / "theirs.csv", index=False)
    validation = pd.read_csv(run / "best.validation.csv")
    validation.to_csv(tmp_path / "val.csv", index=False)
    out = ok(verb("test.py", "--predictions", tmp_path / "theirs.csv", "--validation", tmp_path / "val.csv"))
    folder = tmp_path / "theirs-evaluation"
    metrics, reference = _metrics(folder), _metrics(run / "test")
    assert str(folder / "report.html") in out
    for name in ("accuracy", "macro_f1", "macro_auroc", "ece", "brier"):
        assert metrics[name] == pytest.approx(reference[name])
    assert metrics["temperature"]["value"] == pytest.approx(reference["temperature"]["value"], rel=1e-4)
    thresholds, expected = ([row["threshold"] for row in x["operating_points"]] for x in (metrics, reference))
    assert thresholds == expected
    assert [row["value"] for row in metrics["subgroups"]["sex"]] == ["f", "m"]
    # a folder of ours is computed anew from its table, and keeps what is known of it
    ok(verb("test.py", "--predictions", run / "test" / "predictions.csv"))
    again = _metrics(run / "test")
    assert again["operating_points"] == reference["operating_points"]
    rebuild = ("--predictions", folder / "predictions.csv")
    ok(verb("test.py", *rebuild, "--sensitivity", 0.8))
    ok(verb("test.py", *rebuild))  # and what was given stays
    assert {row["wanted_sensitivity"] for row in _metrics(folder)["operating_points"]} == {0.8}
    assert metrics["temperature"]["value"] == _metrics(folder)["temperature"]["value"]
    shutil.copy(run / "best.pt", tmp_path / "val.csv")
    assert "has changed" in ok(verb("test.py", *rebuild))
    assert _metrics(folder)["operating_points"] == []
    assert again["evaluation"] == reference["evaluation"]
    assert again["accuracy"] == reference["accuracy"]
    table.drop(columns="label").to_csv(tmp_path / "bad.csv", index=False)
    refused(verb("test.py", "--predictions", tmp_path / "bad.csv"), "bad.csv", "label")
    refused(verb("test.py", "--predictions", tmp_path / "none.csv"), "none.csv")
    refused(verb("test.py", "--predictions", tmp_path / "theirs.csv", "--tta"), "--tta")
    refused(verb("test.py", "--predictions", tmp_path / "theirs.csv", "--model", "vgg16"), "model")
    refused(verb("test.py", "--validation", tmp_path / "val.csv"), "--validation")
    both = ("--predictions", tmp_path / "theirs.csv", "--validation", tmp_path / "theirs.csv")
    refused(verb("test.py", *both), "--validation", "of the evaluated images")
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "theirs.csv", tmp_path / "folder" / "predictions.csv")
    (tmp_path / "folder" / "metrics.json").write_text('{"evaluation": 0.9}')
    ok(verb("test.py", "--predictions", tmp_path / "folder" / "predictions.csv", *QUICK))
    assert (tmp_path / "folder" / "metrics.json").read_text() == '{"evaluation": 0.9}'  # another program's
    assert (tmp_path / "folder" / "predictions-evaluation" / "metrics.json").is_file()
    (tmp_path / "folder" / "metrics.json").write_text("{")
    refused(verb("test.py", "--predictions", tmp_path / "folder" / "predictions.csv"), "metrics.json", "JSON")
    assert not (tmp_path / "bad-evaluation").exists()


def test_the_most_confident_errors_are_drawn(verb: Verb, run: Path) -> None:
    refused(verb("draw_cam.py", "--weights", run, "--errors", 3), "--errors 3", "test.py")
    ok(verb("test.py", "--weights", run))
    predictions: Predictions = read_predictions(run / "test" / "predictions.csv")
    wrong = predictions.table[~predictions.correct].sort_values("confidence", ascending=False).head(3)
    before = (run / "test" / "report.html").read_text()
    out = ok(verb("draw_cam.py", "--weights", run, "--count", 1, "--errors", 3))
    cams = pd.read_csv(run / "cams" / "cams.csv")
    assert set(wrong["path"]) <= set(cams["path"])
    assert cams["path"].is_unique
    assert (run / "cams" / "mean_gradcam.png").is_file()
    assert "the report now shows the maps" in out
    assert (run / "test" / "report.html").read_text() != before


def test_an_overlay_records_where_its_image_is(verb: Verb, run: Path, tmp_path: Path) -> None:
    """A bright square in a tall black image is in the same place of the overlay, at the box's scale."""
    import cv2
    from PIL import Image

    image = np.full((400, 200), 30, np.uint8)
    image[300:340, 50:90] = 255
    cv2.imwrite(str(tmp_path / "tall.png"), image)
    ok(verb("draw_cam.py", "--weights", run, "--image", tmp_path / "tall.png", "--output", tmp_path / "o"))
    (file,) = (tmp_path / "o").glob("0000*.png")
    overlay = Image.open(file)
    left, top, right, bottom = map(int, overlay.text["Radiograph"].split(","))
    assert (bottom - top) / (right - left) == pytest.approx(2, rel=0.01)
    grey = np.asarray(overlay.crop((left, top, right, bottom)).resize((200, 400)).convert("L"), int)
    inside = grey[305:335, 55:85].mean()
    assert inside > grey[305:335, 110:140].mean() + 60
    assert inside > grey[240:270, 55:85].mean() + 60


def test_moved_images_keep_their_patients_and_validation(
    verb: Verb, run: Path, phantom: Path, tmp_path: Path, cache_dir: Path
) -> None:
    """Renamed files in another folder are the run's images by content: patients and thresholds stay."""
    split = pd.read_csv(run / "split.csv")
    for i, row in enumerate(split.itertuples()):
        target = tmp_path / "moved" / row.label / f"image{i:04}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, target)
    split.assign(path=split["path"].str.replace("/", "/gone/", n=1)).to_csv(run / "split.csv", index=False)
    ok(verb("test.py", "--weights", run, "--data", tmp_path / "moved"))
    metrics = _metrics(run / "test-moved")
    test = split[split["split"] == "test"]
    assert (metrics["n"], metrics["patients"]) == (len(test), test["group"].nunique())
    assert metrics["operating_points"]
    assert (run / "best.validation.csv").is_file()


def test_an_ensemble_is_computed_anew_with_its_thresholds(verb: Verb, run: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(run, tmp_path / "second"))
    ok(verb("test.py", "--weights", run, second, "--save", tmp_path))
    (folder,) = tmp_path.glob("ensemble-*/test")
    reference = _metrics(folder)
    assert reference["operating_points"]
    ok(verb("test.py", "--predictions", folder / "predictions.csv"))
    assert _metrics(folder)["operating_points"] == reference["operating_points"]
