"""The programs as a user types them: the student project's commands, whole chains, and bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tests.helpers.verbs import TINY, RunsCommand, Verb, ok, refused

pytestmark = pytest.mark.slow


def test_the_chain_on_the_phantom(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    run = ("--data", phantom, "--epochs", 1, "--save", tmp_path, "--name", "a", "data.split=0.6,0.2,0.2")
    out = ok(verb("train.py", *TINY, *run))
    assert all(text in out for text in ("best epoch 1", "test.py --weights", "draw_cam.py --weights"))
    out = ok(verb("test.py", "--save", tmp_path))
    assert "using the newest finished run" in out
    split = pd.read_csv(tmp_path / "a" / "split.csv")
    predictions = pd.read_csv(tmp_path / "a" / "test" / "predictions.csv", keep_default_na=False)
    assert sorted(predictions["path"]) == sorted(split[split["split"] == "test"]["path"])
    probabilities = predictions[[column for column in predictions if column.startswith("p_")]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    metrics = json.loads((tmp_path / "a" / "test" / "metrics.json").read_text())
    assert metrics["accuracy"]["value"] == pytest.approx(
        (predictions["label"] == predictions["predicted"]).mean()
    )
    written = {path.name for path in (tmp_path / "a" / "test").iterdir()}
    figures = {"confusion_matrix.png", "roc.png", "precision_recall.png", "reliability.png"}
    assert written == {"predictions.csv", "metrics.json", "metrics.csv", "report.html", *figures}
    out = ok(verb("draw_cam.py", "--weights", tmp_path / "a", "--count", 2, "--save"))
    cams = tmp_path / "a" / "cams"
    table = pd.read_csv(cams / "cams.csv")
    assert (
        table["label"].value_counts().to_dict() == predictions["label"].value_counts().clip(upper=2).to_dict()
    )
    for row in table.itertuples():
        assert (cams / row.file).is_file()
        cam = np.load(cams / row.file.replace(".png", ".npy"))
        assert cam.shape == (2, 2)
        assert cam.dtype == np.float32
        assert row.peak == pytest.approx(cam.max())
        assert (row.status in ("ok", "diffuse", "border")) == (cam.max() > 0)
        raw = cv2.imread(str(cams / f"{row.file.split('__')[0]}__raw.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(raw, cv2.imread(row.path, cv2.IMREAD_UNCHANGED))
    drawn = table[(table["peak"] > 0) & (table["label"] != "Normal")]
    assert drawn[["lung_energy", "lung_area", "lung_lift", "lung_hit", "lesion_lift", "lesion_hit"]].notna().all().all()
    np.testing.assert_allclose(drawn["lesion_lift"], drawn["lesion_energy"] / drawn["lesion_area"])


def test_the_commands_of_the_student_project(verb: Verb, tmp_path: Path) -> None:
    small = ("data.phantom_count=120", "data.size=64")
    quick = ("--init", "none", "--precision", "fp32", *small)
    ok(verb("dataset/data.py", "--output", tmp_path / "sheet.png", *small))
    assert cv2.imread(str(tmp_path / "sheet.png")).shape[2] == 3
    train = f"--epochs 1 --learning_rate 3e-5 --batch 32 --save {tmp_path}/runs/ --workers 8 --model resnet18"
    ok(verb("train.py", *train.split(), *quick))
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["init"] == "random weights (--init none)"
    assert pd.read_csv(run / "history.csv")["learning_rate"].max() <= 3e-5
    test = f"--batch 32 --weights {run}/best.pt --model resnet18 --classes 4 --kind test --subset"
    assert "accuracy" in ok(verb("test.py", *test.split()))
    assert (run / "test-subset" / "metrics.json").is_file()
    draw = f"--model resnet18 --output {tmp_path}/out --connfig configs/configs.yaml --save {tmp_path}/kept --count 1"
    ok(verb("draw_cam.py", "--weights", run, *draw.split()))
    split = pd.read_csv(run / "split.csv")
    classes = split[split["split"] == "test"]["label"].nunique()
    assert len(list((tmp_path / "out").glob("0*.png"))) == classes
    assert len(list((tmp_path / "kept").glob("*__raw.png"))) == classes


def test_table_and_contact_sheet(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    out = ok(verb("dataset/data.py", "--data", phantom, "--output", tmp_path / "new" / "sheet.png"))
    rows = {line.rsplit(maxsplit=5)[0].strip(): line.split()[-5:] for line in out.splitlines() if line[:1].isalpha()}
    assert rows["all classes"][3] == "120"
    assert rows["Viral Pneumonia"][3] == str(len(list((phantom / "Viral Pneumonia" / "images").iterdir())))
    assert int(rows["all classes"][4]) < 120


def test_images_and_folders_given_by_the_user(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some images"
    folder.mkdir()
    source = sorted((phantom / "COVID" / "images").iterdir())[0]
    shutil.copy(source, folder / "known, by content.png")
    tall = np.random.default_rng(0).integers(0, 65536, (300, 111)).astype(np.uint16)
    cv2.imwrite(str(folder / "tall.TIFF"), tall)
    (folder / "notes.txt").write_text("x")
    output = ("--output", tmp_path / "o")
    ok(verb("draw_cam.py", "--weights", tiny_run, "--image", folder, "--label", "Normal", *output, "--save"))
    table = pd.read_csv(tmp_path / "o" / "cams.csv", keep_default_na=False)
    assert table["target"].tolist() == ["Normal", "Normal"]
    assert table["label"].tolist() == ["COVID", ""]
    raw = cv2.imread(str(tmp_path / "o" / "0001_tall__raw.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(raw, np.round(tall / 257).astype(np.uint8))
    # a second call into the same folder deletes the first one's maps
    ok(verb("draw_cam.py", "--weights", tiny_run, "--image", folder / "tall.TIFF", *output))
    assert len(list((tmp_path / "o").glob("0*.png"))) == 1


def test_masks_from_other_folders(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    images = sorted((phantom / "COVID" / "images").iterdir())[:3]
    for image in images:
        shutil.copy(image, tmp_path)
    (tmp_path / "lungs").mkdir()
    half = np.zeros((70, 70), np.uint8)
    half[:, :35] = 255
    for image in images:
        cv2.imwrite(str(tmp_path / "lungs" / image.name), half)
    folders = ("--lung-masks", tmp_path / "lungs", "--output", tmp_path / "o")
    ok(verb("draw_cam.py", "--weights", tiny_run, "--image", *images, *folders))
    table = pd.read_csv(tmp_path / "o" / "cams.csv")
    np.testing.assert_allclose(table["lung_area"], 0.5, atol=0.01)


def test_maps_of_every_run(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "one")
    shutil.copytree(tiny_run, tmp_path / "two")
    keep = tmp_path / "kept"
    folders = ("--output", tmp_path / "out", "--save", keep, f"save={tmp_path}")
    ok(verb("draw_cam.py", "--model", "all", "--count", 1, *folders))
    assert all(len(list((keep / name).glob("*.npy"))) == 4 for name in ("one", "two"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["one", "two"]
    assert all(len(list((tmp_path / "out" / name).glob("0*.png"))) == 4 for name in ("one", "two"))


def test_a_map_without_evidence_is_reported_and_stays_grey(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_run / "best.pt", weights_only=True)
    content["model"]["fc.weight"] = -content["model"]["fc.weight"].abs()
    run = tmp_path / "negative"
    shutil.copytree(tiny_run, run)
    torch.save(content, run / "best.pt")
    out = ok(verb("draw_cam.py", "--weights", run, "--count", 1, "--save"))
    assert "4 without positive evidence" in out
    table = pd.read_csv(run / "cams" / "cams.csv")
    assert table["status"].tolist() == ["empty"] * 4
    assert table["peak"].tolist() == [0.0] * 4
    assert table["lung_lift"].isna().all()
    overlay = cv2.imread(str(run / "cams" / table["file"][0])).astype(int)
    middle = overlay[150:400, 100:400]
    assert (middle.max(2) - middle.min(2) > 2).mean() < 0.1  # grey except for the outlines of the masks


def test_a_checkpoint_away_from_its_run(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "best.pt", tmp_path / "model.pt")
    refused(verb("test.py", "--weights", tmp_path / "model.pt"), "--data DIR")
    ok(verb("test.py", "--weights", tmp_path / "model.pt", "--data", phantom))
    away = pd.read_csv(tmp_path / "model-test-phantom" / "predictions.csv").set_index("path")
    ok(verb("test.py", "--weights", tiny_run / "best.pt"))
    home = pd.read_csv(tiny_run / "test" / "predictions.csv").set_index("path")
    pd.testing.assert_frame_equal(away.sort_index(), home.sort_index())


def test_moved_data_keep_their_split(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    shutil.copytree(phantom, tmp_path / "moved")
    ok(verb("test.py", "--weights", tiny_run, "--data", tmp_path / "moved"))
    moved = pd.read_csv(tiny_run / "test-moved" / "predictions.csv")
    split = pd.read_csv(tiny_run / "split.csv")
    assert set(moved["sha256"]) == set(split[split["split"] == "test"]["sha256"])


def test_another_order_of_classes_is_mapped_by_name(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_run / "best.pt", weights_only=True)
    order = [2, 0, 3, 1]
    content["classes"] = [content["classes"][i] for i in order]
    for name in ("fc.weight", "fc.bias"):
        content["model"][name] = content["model"][name][order]
    torch.save(content, tmp_path / "other.pt")
    ok(verb("test.py", "--weights", tmp_path / "other.pt", "--data", phantom))
    ok(verb("test.py", "--weights", tiny_run / "best.pt"))
    other = pd.read_csv(tmp_path / "other-test-phantom" / "predictions.csv").set_index("path").sort_index()
    ours = pd.read_csv(tiny_run / "test" / "predictions.csv").set_index("path").sort_index()
    assert (other["predicted"] == ours["predicted"]).all()
    np.testing.assert_allclose(other[ours.columns[4:8]], ours[ours.columns[4:8]], atol=1e-6)


def test_an_interrupt_prints_no_traceback(
    verb: Verb, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import trainer

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "train_epoch", interrupt)
    result = verb("train.py", *TINY, "--data", phantom, "--save", tmp_path, "--name", "a")
    assert result.code == 130
    assert "Traceback" not in result.err
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "/no/such/folder"], ["/no/such/folder", "no such"]),
        (["--model", "resnet81"], ["resnet81", "resnet18"]),
        (["--epochs", "-3"], ["train.epochs=-3"]),
        (["--epochs", "0"], ["train.epochs=0"]),
        (["--epochs", "many"], ["--epochs", "many"]),
        (["trian.lr=3"], ["trian.lr", "train.lr"]),
        (["preset=sed"], ["preset=sed", "seed"]),
        (["--init", "imagenett"], ["--init imagenett"]),
        (["--device", "cuda:77"], ["--device cuda:77"]),
        (["--config", "nope.yaml"], ["nope.yaml"]),
        (["--resume", "/no/run"], ["/no/run"]),
        (["--resume", "/no/run", "preset=seed"], ["data.path cannot change"]),
        (["--lerning-rate", "3"], ["--lerning-rate", "--learning-rate"]),
    ],
)
def test_bad_input_of_train(verb: Verb, phantom: Path, tmp_path: Path, argv: list[str], words: list[str]) -> None:
    defaults = [] if "--data" in argv else ["--data", phantom]
    flags = ["--save", tmp_path, "--init", "none", "--precision", "fp32", "data.size=64"]
    refused(verb("train.py", *flags, *defaults, *argv), *words)
    assert not list(tmp_path.glob("*/best.pt"))


def test_folders_without_images_or_classes(verb: Verb, tmp_path: Path) -> None:
    refused(verb("train.py", "--data", tmp_path, "--save", tmp_path / "runs"), str(tmp_path), "no images")
    (tmp_path / "one" / "A").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "one" / "A" / "a.png"), np.zeros((40, 40), np.uint8))
    refused(verb("train.py", "--data", tmp_path / "one", "--save", tmp_path / "runs"), "only one class, 'A'")


def test_an_unwritable_save(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(verb("train.py", *TINY, "--data", phantom, "--save", tmp_path / "file" / "runs"), "--save", "file")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("kind", ["missing", "text", "code", "truncated", "state", "folder"])
@pytest.mark.parametrize("script", ["test.py", "draw_cam.py"])
def test_bad_weights(
    verb: Verb, tiny_run: Path, tmp_path: Path, kind: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pt"
    monkeypatch.chdir(tmp_path)
    if kind == "text":
        path.write_text("weights")
    elif kind == "code":
        torch.save({"model": RunsCommand()}, path)
    elif kind == "truncated":
        path.write_bytes((tiny_run / "best.pt").read_bytes()[:100_000])
    elif kind == "state":
        torch.save(torch.load(tiny_run / "best.pt", weights_only=True)["model"], path)
    elif kind == "folder":
        path.mkdir()
    refused(verb(script, "--weights", path), "--weights", "w.pt")
    assert not (tmp_path / "executed").exists()


def test_bad_input_of_test(verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path) -> None:
    before = sorted(tiny_run.rglob("*"))
    refused(verb("test.py", "--weights", tiny_run, "data.fit=letterbox"), "data.fit")
    refused(verb("test.py", "--weights", tiny_run, "--data", ""), "data.path")
    refused(verb("test.py", "--weights", tiny_run, "--classes", 3), "--classes 3", "4")
    refused(verb("test.py", "--weights", tiny_run, "--model", "vgg16"), "vgg16", "resnet18")
    refused(verb("test.py", "--weights", tiny_run, "--kind", "tset"), "--kind")
    refused(verb("test.py", "--save", tmp_path), "no finished run")
    shutil.copytree(phantom / "COVID", tmp_path / "data" / "COVID")
    shutil.copytree(phantom / "Normal", tmp_path / "data" / "Healthy")
    result = verb("test.py", "--weights", tiny_run, "--data", tmp_path / "data")
    refused(result, "Healthy", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert sorted(tiny_run.rglob("*")) == before


def test_bad_input_of_draw_cam(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    weights = ("--weights", tiny_run)
    refused(verb("draw_cam.py", *weights, "--image", tmp_path / "text.png"), "--image", "text.png")
    refused(verb("draw_cam.py", *weights, "--image", tmp_path / "nope.png"), "--image", "nope.png")
    refused(verb("draw_cam.py", *weights, "--image", tmp_path / "empty"), "--image", "no images")
    refused(verb("draw_cam.py", *weights, "--label", "Covid19"), "--label Covid19", "COVID")
    refused(verb("draw_cam.py", *weights, "--count", 0), "--count")
    refused(verb("draw_cam.py", *weights, "--lung-masks", tmp_path / "nope"), "--lung-masks")
    refused(verb("draw_cam.py", "--model", "all", f"save={tmp_path}"), "no finished run")
    (tmp_path / "file").write_text("in the way")
    refused(verb("draw_cam.py", *weights, "--output", tmp_path / "file" / "x"), "--output")


def test_a_letterboxed_model_is_drawn_on_the_image(verb: Verb, phantom: Path, tmp_path: Path) -> None:
    """The map of a tall image is mapped back without the padding at its sides."""
    run = ("--data", phantom, "--epochs", 1, "--save", tmp_path, "--name", "a", "data.fit=letterbox")
    ok(verb("train.py", *TINY, *run, "data.split=0.6,0.2,0.2"))
    tall = cv2.resize(cv2.imread(str(next((phantom / "COVID" / "images").iterdir())), 0), (150, 299))
    cv2.imwrite(str(tmp_path / "tall$_$.png"), tall)
    image = tmp_path / "tall$_$.png"
    ok(verb("draw_cam.py", "--weights", tmp_path / "a", "--image", image, "--output", tmp_path / "o"))
    assert len(list((tmp_path / "o").glob("0*.png"))) == 1


def test_other_data_are_split_again_even_if_some_images_are_known(
    verb: Verb, tiny_run: Path, phantom: Path, tmp_path: Path
) -> None:
    from dataset.phantom.write import write_phantom

    other = write_phantom(tmp_path / "other", count=80, seed=9)
    known = next((phantom / "COVID" / "images").iterdir())
    shutil.copy(known, other / "COVID" / "images" / "COVID-P9999-1.png")
    out = ok(verb("test.py", "--weights", tiny_run, "--data", other))
    assert "not in the run's split.csv: 80 of 81 images; a new split is drawn" in out
