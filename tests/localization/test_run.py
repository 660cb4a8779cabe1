"""draw_cam.py's folder: maps of several methods, scores beside controls, panels, two models, sanity, bad input."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from localization.methods.table import METHODS
from localization.run import together_folder
from tests.helpers.verbs import TINY, Verb, ok, refused

pytestmark = pytest.mark.slow


def test_scores_beside_controls(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    """The tables against the saved maps and the masks' files, computed once more by other means."""
    methods = ("gradcam", "eigencam", "occlusion")
    drawing = ("--weights", tiny_run, "--count", 2, "--method", ",".join(methods), "--output", tmp_path)
    out = ok(verb("draw_cam.py", *drawing, "--score", "--score-count", 2, "--save"))
    assert "lesion lift" in out
    rows = pd.read_csv(tmp_path / "cams.csv")
    assert len(list(tmp_path.glob("*__panel__*.png"))) == rows["path"].nunique()
    assert sorted(rows["method"].unique()) == sorted(methods)
    assert (rows["deletion"].notna().groupby(rows["path"]).all()).sum() == 2  # --score-count
    for row in rows[rows["lung_lift"].notna()].itertuples():
        cam = np.load(tmp_path / row.file.replace(".png", ".npy"))
        mask = cv2.imread(row.path.replace("/images/", "/masks/"), 0) > 127
        heat = cv2.resize(cam, mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        assert row.lung_energy == pytest.approx(heat[mask].sum() / heat.sum(), abs=0.02)
        assert row.lung_lift == pytest.approx(row.lung_energy / row.lung_area)
    controls = pd.read_csv(tmp_path / "controls.csv")
    kinds = controls.groupby(["method", "path"])["control"].nunique()
    assert kinds[["gradcam", "eigencam"]].eq(4).all()
    assert sorted(kinds["occlusion"])[-3:] == [3, 4, 4]  # costly: with random weights on --score-count images alone
    uniform = controls[controls["control"] == "uniform"]
    assert (uniform[["lung_lift", "lesion_lift"]] - 1).abs().max().max() < 1e-6
    assert (uniform["lung_iou"] - uniform["lung_area"] / (2 - uniform["lung_area"])).abs().max() < 1e-6
    oracle = controls[controls["control"] == "oracle"].set_index(["path", "method"])["lung_lift"]
    finer, coarser = (oracle.xs(method, level=1) for method in ("occlusion", "gradcam"))
    assert (finer > coarser).all()
    random = controls[(controls["control"] == "randomised") & (controls["method"] == "gradcam")].set_index("path")
    own = rows[rows["method"] == "gradcam"].set_index("path")
    assert (random["lung_energy"] - own["lung_energy"]).abs().max() > 1e-3
    scores = pd.read_csv(tmp_path / "scores.csv")
    line = scores[(scores["class"] == "all") & (scores["method"] == "gradcam") & (scores["score"] == "lung_lift")]
    counted = own[(own["label"] == own["predicted"]) & own["lung_lift"].notna()]
    assert line["value"].item() == pytest.approx(counted["lung_lift"].mean(), rel=1e-5)
    assert line["uniform"].item() == pytest.approx(1, abs=1e-5)


def test_a_weak_map_looks_weak_on_a_shared_scale(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    """Autumn is (1, x, 0): red less blue is the opacity alone, 0.6 of a map's share of the top of its scale."""
    opacity = {}
    for scale in ("image", "batch", "shared"):
        folder = tmp_path / scale
        drawing = ("--weights", tiny_run, "--count", 1, "--scale", scale, "--batch", 2, "--colormap", "autumn")
        ok(verb("draw_cam.py", *drawing, "--output", folder))
        rows = pd.read_csv(folder / "cams.csv")
        images = [cv2.imread(str(folder / name)).astype(int)[60:540, 40:500] for name in rows["file"]]
        opacity[scale] = [image[..., 2] - image[..., 0] for image in images]
    peak = rows["peak"]
    assert len(peak) == 4
    assert peak.nunique() == 4
    tops = {"batch": peak.groupby(peak.index // 2).transform("max"), "shared": peak.max()}
    for scale, top in tops.items():
        for number in peak.index[peak > 0]:  # an empty map has no colours
            own, other = opacity["image"][number], opacity[scale][number]
            coloured = own > 90  # a mask's outline and words over the map are of one colour: not the median
            assert np.median(other[coloured] / own[coloured]) == pytest.approx((peak / top)[number], abs=0.01)


def test_two_models_and_their_difference(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    content = torch.load(tiny_run / "best.pt", weights_only=True)
    content["model"]["layer4.1.bn2.bias"] += 0.02 * torch.randn(512, generator=torch.Generator().manual_seed(0))
    torch.save(content, other / "best.pt")
    both = ("--weights", tiny_run, other, "--count", 4, "--output", tmp_path / "o")
    ok(verb("draw_cam.py", *both, "--score", "--score-count", 0))
    assert (tmp_path / "o" / "difference_gradcam.png").is_file()
    found = [pd.read_csv(tmp_path / "o" / name / "cams.csv").set_index("path")["target"] for name in ("tiny", "other")]
    same = (found[0] == found[1]).sum()
    assert len(list((tmp_path / "o").glob("*__gradcam__difference__*.png"))) == same > 0
    scores = pd.read_csv(tmp_path / "o" / "scores.csv")
    assert set(scores["model"]) == {"tiny", "other"}
    refused(verb("draw_cam.py", "--weights", tiny_run, tiny_run), "given twice")


def test_two_sets_of_models_get_two_folders(tmp_path: Path) -> None:
    """Five runs whose names begin alike: the folder's name is cut, and still tells the two sets apart."""
    names = [f"resnet18-20260102-030405-radiographs-of-the-first-hospital-{i}" for i in range(6)]
    sets = names[:5], [*names[:4], names[5]]
    folders = {together_folder(tmp_path, {name: tmp_path / name / "best.pt" for name in chosen}) for chosen in sets}
    assert len(folders) == 2
    for folder in folders:
        assert len(folder.name.encode()) <= 255
        folder.mkdir()


def test_the_folder_of_a_comparison_is_about_these_checkpoints_only() -> None:
    runs = Path("runs")

    def folder(*names: str, parent: str = "runs", file: str = "best.pt") -> str:
        return together_folder(runs, {name: Path(parent, name, file) for name in names}).name

    assert folder("a", "b") == "localization-a-vs-b"
    others = [
        folder("a", "b"),
        folder("a", "b", parent="old"),
        folder("a", "b", file="last.pt"),
        folder("a-vs-b", "c"),
        folder("a", "b-vs-c"),
    ]
    assert len(set(others)) == len(others)


def test_layers_by_name(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    arguments = ("--weights", tiny_run, "--count", 1, "--output", tmp_path, "--save")
    for layers, grid in (("layer3", (4, 4)), ("layer2,layer4", (8, 8))):
        ok(verb("draw_cam.py", *arguments, "--layer", layers))
        assert {np.load(file).shape for file in tmp_path.glob("*.npy")} == {grid}
    weights = ("--weights", tiny_run)
    refused(verb("draw_cam.py", *weights, "--layer", "layer9"), "--layer layer9", "layer4")
    refused(verb("draw_cam.py", *weights, "--layer", "fc"), "--layer fc", "layer4")


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"])
def test_any_architecture_through_all_three_verbs(verb: Verb, phantom: Path, tmp_path: Path, name: str) -> None:
    """A transformer, a ConvNeXt and a network of depthwise convolutions, without a word to any of them."""
    training = ("--model", name, *TINY[2:-1], "--data", phantom, "--epochs", 1, "--save", tmp_path, "--name", "a")
    ok(verb("train.py", *training, "data.split=0.6,0.2,0.2"))
    ok(verb("test.py", "--weights", tmp_path / "a", "--quick"))
    out = ok(verb("draw_cam.py", "--weights", tmp_path / "a", "--method", "all", "--count", 1, "--max-channels", 4))
    drawn = set(pd.read_csv(tmp_path / "a" / "cams" / "cams.csv")["method"])
    lacking = {"guided_gradcam"} if name == "timm/test_vit" else {"rollout", "gradient_rollout"}
    assert set(METHODS) - drawn <= lacking | {"guided_gradcam"}
    assert "without" in out


def test_sanity_is_said_and_strict_ends_in_one(verb: Verb, tiny_run: Path, tmp_path: Path) -> None:
    """Eigen-CAM knows no class: it fails that check by construction, and only --strict makes that an exit code."""
    arguments = ("--weights", tiny_run, "--count", 1, "--method", "eigencam", "--sanity", "--output", tmp_path)
    assert "Eigen-CAM" in ok(verb("draw_cam.py", *arguments))
    assert (tmp_path / "sanity.png").is_file()
    table = pd.read_csv(tmp_path / "sanity.csv")
    verdicts = table.set_index("check")["verdict"].to_dict()
    assert verdicts["class"] == "fail"
    assert verdicts["batch"] == verdicts["seed"] == "pass"
    assert verb("draw_cam.py", *arguments, "--strict").code == 1


def test_bad_input(verb: Verb, tiny_run: Path) -> None:
    weights = ("--weights", tiny_run)
    refused(verb("draw_cam.py", *weights, "--method", "gradcm"), "--method gradcm", "did you mean gradcam")
    refused(verb("draw_cam.py", *weights, "--method", "gradcam,rollout"), "--method rollout", "resnet18", "scorecam")
    refused(verb("draw_cam.py", *weights, "--colormap", "infrno"), "--colormap infrno", "inferno")
    refused(verb("draw_cam.py", *weights, "--strict"), "--strict", "--sanity")
    refused(verb("draw_cam.py", *weights, "--tolerance", 2), "--tolerance 2")
    refused(verb("draw_cam.py", *weights, "--sanity-count", 1), "--sanity-count 1")
    refused(verb("draw_cam.py", *weights, "--max-channels", 0), "--max-channels 0")


def test_help_names_every_method(verb: Verb) -> None:
    """`--help` cannot ask the table, which needs torch: this keeps the two together."""
    words = " ".join(verb("draw_cam.py", "--help").out.split()).replace(",", " ").replace(";", " ").split()
    assert set(METHODS) <= set(words)
