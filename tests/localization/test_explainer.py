"""`Explainer` on a bare module: maps, layers, errors, and a long loop that keeps no memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localization import METHODS, Explainer
from localization.methods.explanation import Settings
from localization.states import MapState
from tests.helpers.networks import SIZE, architecture_of, build_network
from tests.helpers.verbs import ROOT
from utils import UserError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class _Small(nn.Module):
    """Two convolutions with ReLUs, global average pooling and a linear head for 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.activation, self.classifier = nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.activation(self.second(self.activation(self.first(x)))).mean((2, 3)))


def _explainer(**arguments: Any) -> Explainer:
    torch.manual_seed(0)
    return Explainer(_Small(), **{"mean": MEAN, "std": STD, "size": 32} | arguments)


def _images() -> torch.Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize(("statement", "absent"), [("METHODS", "torch"), ("Explainer", "matplotlib")])
def test_importing_the_room_is_light(statement: str, absent: str) -> None:
    code = f"import sys; from localization import {statement}; print('{absent}' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "False\n"


def test_a_bare_module_is_explained_like_its_architecture() -> None:
    model = build_network("resnet18", "moved")
    architecture = architecture_of("resnet18", model)
    tabled = Explainer.from_architecture(model, architecture, SIZE)
    bare = Explainer(model, mean=architecture.mean, std=architecture.std, size=SIZE)
    assert (bare.layers, bare.available) == (tabled.layers, tabled.available)
    assert bare.architecture.head == architecture.head
    images = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(bare.maps(images), tabled.maps(images))


@pytest.mark.parametrize("name", ["gradcam", "Integrated gradients", "occlusion"])
def test_maps_are_those_of_the_normalised_images(name: str) -> None:
    face = _explainer(settings=Settings(batch=2, steps=4, cells=4))
    images = _images()
    inputs = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    (method,) = face.choose(name)
    for target in (None, 1, [0, 1, 2, 1, 0], torch.tensor([0, 1, 2, 1, 0])):
        targets = None if target is None else torch.as_tensor(target).expand(5)
        expected = METHODS[method].function(face.explain(inputs, targets))
        torch.testing.assert_close(face.maps(images, name, target), expected, rtol=1e-4, atol=1e-6)


def test_images_in_every_form_give_the_same_maps() -> None:
    face, images = _explainer(), _images()
    assert torch.equal(face.maps(images.numpy()[::-1]), face.maps(images.flip(0)))
    whole = (255 * images).round()
    torch.testing.assert_close(face.maps(whole.byte()), face.maps(whole / 255))
    grey = images[:, 0]
    for one in (grey[:, None], grey[:, None].expand(-1, 3, -1, -1)):
        assert torch.equal(face.maps(grey), face.maps(one))


def test_layers_are_given_as_names_or_modules() -> None:
    model = _Small()
    given = {
        None: ["activation"],
        "second": ["second"],
        model.second: ["second"],
        ("first", model.second): ["first", "second"],
    }
    for layers, names in given.items():
        face = Explainer(model, mean=MEAN, std=STD, size=32, layers=layers)
        assert [layer.name for layer in face.layers] == names
    assert face.maps(_images()).shape == (5, 16, 16)  # the finer of the two grids
    with pytest.raises(UserError, match="layers: not a module of this model"):
        _explainer(layers=nn.ReLU())
    with pytest.raises(UserError, match=r"^layers secnd: _Small has no such layer \(did you mean second"):
        _explainer(layers="secnd")


def test_a_model_whose_head_is_no_module_has_its_scores_probed() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.weights = nn.Conv2d(3, 6, 3, 2, 1), nn.Parameter(torch.randn(6, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.features(x)).mean((2, 3)) @ self.weights

    face = Explainer(Pooled(), mean=MEAN, std=STD, size=32)
    assert (face.architecture.head, face.class_count) == ("", 2)
    assert [layer.name for layer in face.layers] == ["features"]
    assert face.maps(_images()).shape == (5, 16, 16)


@pytest.mark.parametrize(
    ("images", "target", "message"),
    [
        (torch.rand(5, 3, 32, 31), None, r"the shape is \(5, 3, 32, 31\); pass \(n, 32, 32\) or \(n, 3, 32, 32\)"),
        (torch.rand(5, 2, 32, 32), None, "the shape is"),
        (np.zeros((0, 32, 32)), None, "the shape is"),
        (torch.randn(5, 3, 32, 32), None, "neither uint8 nor floats"),
        (np.zeros((5, 32, 32), np.int64), None, "neither uint8 nor floats"),
        (torch.rand(5, 32, 32), 3, "target 3: pass one class from 0 to 2, or one for each of the 5 images"),
        (torch.rand(5, 32, 32), [0, 1], "for each of the 5 images"),
        (torch.rand(5, 32, 32), -1, "target -1"),
        (torch.rand(5, 32, 32), "COVID", "target COVID: pass one class from 0 to 2"),
        (torch.rand(5, 32, 32), ["COVID"] * 5, "pass one class"),
        (torch.rand(5, 32, 32), [[0], [1, 2]], "pass one class"),
        (torch.rand(5, 32, 32), [0, None, 1, 1, 1], "pass one class"),
        (torch.rand(5, 32, 32), 1.5, "target 1.5"),
        (torch.rand(5, 32, 32), float("nan"), "target nan"),
    ],
)
def test_images_and_targets_that_do_not_fit_are_refused(images: Any, target: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _explainer().maps(images, "gradcam", target)


def test_methods_that_are_unknown_or_unavailable_are_refused() -> None:
    face = _explainer()
    with pytest.raises(UserError, match=r"^method gradcan: unknown method \(did you mean gradcam.*gradient_rollout$"):
        face.maps(_images(), "gradcan")
    with pytest.raises(UserError, match=r"^method rollout: not available for _Small: it has no attention"):
        face.maps(_images(), "rollout")
    assert "rollout" not in face.available
    with pytest.raises(UserError, match=r"^method gradcan: .*, or all$"):
        face.choose("gradcan")
    for all_methods in ("all", "gradcam,hirescam"):
        with pytest.raises(UserError, match="unknown method"):
            face.maps(_images(), all_methods)


def test_a_model_of_another_number_of_channels_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match=r"^Sequential: it cannot take an image of 3 channels .*: Given groups=1"):
        Explainer(model, mean=MEAN, std=STD, size=32)


def test_a_model_without_class_scores_is_refused() -> None:
    with pytest.raises(UserError, match=r"Conv2d: it returns no class scores \(n, classes\)"):
        Explainer(nn.Conv2d(3, 4, 3), mean=MEAN, std=STD, size=32)


@pytest.mark.slow
def test_memory_stays_flat_over_a_loop(tmp_path: Path) -> None:
    """Count tensors and resident memory while images are explained by every method and drawn."""
    import gc

    from localization.drawing.geometry import Square
    from localization.drawing.overlay import ImageWithMasks, MapEntry, draw_overlay

    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(True), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(True), head).eval()
    settings = Settings(max_channels=4, steps=2, samples=2, cells=2)
    explainer = Explainer(net, mean=(0.5,) * 3, std=(0.25,) * 3, size=32, settings=settings)
    counts, resident = [], []
    for i in range(150):
        explanation = explainer.explain(torch.randn(2, 3, 32, 32))
        for method in explainer.available:
            maps = METHODS[method].function(explanation)
        if i % 10 == 0:
            entry = MapEntry(title="", cam=maps[0].numpy(), state=MapState.OK)
            image = ImageWithMasks(np.zeros((32, 32), np.uint8))
            draw_overlay(tmp_path / "a.png", image, entry, "image", Square("squash", 32))
        if i in (29, 149):
            gc.collect()
            counts.append(sum(type(o) is torch.Tensor for o in gc.get_objects()))
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert counts[1] <= counts[0] + 2
    assert resident[1] - resident[0] < 2**25  # what the allocator may keep; a graph kept per pass would be more
