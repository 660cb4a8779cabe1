"""Building models: names, heads, initial weights, and files that must not be trusted."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import pytest
import torch

import pretrained_models
from localization.methods.layers import find_layers
from pretrained_models import (
    build_model,
    canonical_name,
    check_size,
    default_size,
    load_backbone,
    read_state,
)
from tests.helpers.verbs import SHARED, RunsCommand, needs_shared
from utils import UserError, read_tensors

LITE0 = SHARED / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"


@pytest.mark.parametrize(
    ("name", "head", "layer", "features"),
    [
        ("ResNet18", "fc", "layer4", 512),
        ("DENSENET121", "classifier", "features", 1024),
        ("squeezenet1_1", "classifier.1", "features", 512),
        ("mobilenet_v2", "classifier.1", "features", 1280),
        ("timm/resnet18", "fc", "layer4", 512),
        ("timm/tf_efficientnet_lite0", "classifier", "bn2", 1280),
        ("googlenet", "fc", "inception5b", 1024),
    ],
)
def test_heads_and_layers(name: str, head: str, layer: str, features: int) -> None:
    model, architecture, init = build_model(name, 5)
    assert architecture.name == name.lower()
    assert architecture.head == head
    assert [target.name for target in find_layers(model, architecture, 96)] == [layer]
    shapes = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: shapes.append(o.shape))
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 96, 96)).shape == (2, 5)
    handle.remove()
    assert shapes[0][1] == features
    assert shapes[0][2] == shapes[0][3] > 1
    assert "random" in init


def test_vgg_layer_is_its_last_relu() -> None:
    with torch.device("meta"):
        import torchvision

        model = torchvision.models.vgg16()
    architecture = pretrained_models.Architecture(
        name="vgg16", head="classifier.6", size=224, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    (layer,) = find_layers(model, architecture, 224)
    assert layer.name == "features.29"
    assert isinstance(model.get_submodule(layer.name), torch.nn.ReLU)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet81", "resnet18"), ("timm/resnt18", "timm/resnet18"), ("densnet121", "densenet121")]
)
def test_unknown_names_suggest_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        canonical_name(name)


def test_sizes() -> None:
    assert (default_size("resnet18"), default_size("inception_v3"), default_size("timm/tf_efficientnet_lite0")) == (
        224,
        299,
        224,
    )
    model, architecture, _ = build_model("timm/vit_tiny_patch16_224", 2)
    with pytest.raises(UserError, match=r"use data\.size=224"):
        check_size(model, architecture, 64)


def test_a_file_starts_the_backbone_and_keeps_the_new_head(tmp_path: Path) -> None:
    source, _, _ = build_model("resnet18", 7)
    for name in ("a.pt", "b.pth", "c.safetensors"):
        if name.endswith("safetensors"):
            from safetensors.torch import save_file

            save_file(source.state_dict(), tmp_path / name)
        else:
            torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / name)
        model, _, init = build_model("resnet18", 4, str(tmp_path / name))
        torch.testing.assert_close(model.conv1.weight, source.conv1.weight)
        assert model.fc.weight.shape == (4, 512)
        assert "head was dropped" in init
        model, _, init = build_model("resnet18", 7, str(tmp_path / name))
        torch.testing.assert_close(model.fc.weight, source.fc.weight)
        assert "dropped" not in init


@needs_shared("weights")
def test_real_imagenet_weights_give_timm_s_own_scores() -> None:
    import timm

    model, architecture, _ = build_model("timm/tf_efficientnet_lite0", 1000, str(LITE0))
    reference = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(LITE0)).eval()
    inputs = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(inputs), reference(inputs))
    assert architecture.mean == (0.5, 0.5, 0.5)
    assert "head was dropped" in build_model("timm/tf_efficientnet_lite0", 4, str(LITE0))[2]


def test_a_file_of_another_model_is_refused() -> None:
    model, _, _ = build_model("resnet18", 4)
    state = model.state_dict()
    for change, words in (
        ({"conv1.weight": None}, "has no conv1.weight"),
        ({"extra": torch.zeros(1)}, "unknown extra"),
        ({"conv1.weight": torch.zeros(1)}, "another shape for conv1.weight"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(UserError, match=words):
            load_backbone(model, changed, "fc", "x.pt")


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "pickle", "pickled code", "truncated", "truncated.safetensors", "no state"]
)
def test_files_that_must_not_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("a.safetensors" if kind.endswith("safetensors") else "a.pt")
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("conv1.weight = 3\n")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"model": [1, 2]}))
    elif kind == "pickled code":
        torch.save({"model": RunsCommand()}, path)
    elif kind == "truncated":
        torch.save({"w": torch.zeros(10000)}, path)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "truncated.safetensors":
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(10000)}, path)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "no state":
        torch.save({"epoch": 3}, path)
    with pytest.raises(UserError, match=r"--init .*a\.") as caught:
        read_state(path, "--init")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_read_tensors_returns_what_was_saved(tmp_path: Path) -> None:
    torch.save({"a": [1, "x", torch.ones(2)]}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt", "--weights")["a"][1] == "x"


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_without_a_connection_auto_warns_and_imagenet_fails(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """The server never answers; the wait is `CONNECT_SECONDS`, whatever this machine's network does."""
    from command_line import start_logging

    start_logging()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained_models, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    released, ended = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        released.wait(60)
        ended.set()
        raise OSError("released")

    monkeypatch.setattr(pretrained_models.urllib.request, "urlopen", hang)
    _, _, init = build_model(name, 4, "auto")
    assert not ended.is_set()
    assert "random weights" in init
    assert "starting from random weights" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--init imagenet.*no connection within"):
        build_model(name, 4, "imagenet")
    released.set()


def test_imagenet_weights_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This runs the real loading code except the download: the file is already in torch.hub's cache."""
    from torchvision.models import ResNet18_Weights

    source, _, _ = build_model("resnet18", 1000)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), tmp_path / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    model, _, init = build_model("resnet18", 4, "imagenet")
    torch.testing.assert_close(model.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert "ImageNet" in init


def test_densenet_weights_with_torchvision_s_old_names(tmp_path: Path) -> None:
    """The published files have denselayer1.norm.1 for the model's norm1; torchvision's own loader maps them."""
    import re

    source, _, _ = build_model("densenet121", 1000)
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in source.state_dict().items()}
    assert any("norm.1.weight" in k for k in old)
    torch.save(old, tmp_path / "densenet.pth")
    model, _, _ = build_model("densenet121", 4, str(tmp_path / "densenet.pth"))
    torch.testing.assert_close(
        model.features.denseblock4.denselayer16.conv2.weight, source.features.denseblock4.denselayer16.conv2.weight
    )


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5"])
def test_files_of_architectures_with_peculiarities(name: str, tmp_path: Path) -> None:
    """GoogLeNet's file has auxiliary heads, and its weights need transformed input; MNASNet's file needs a version."""
    import torchvision

    kwargs = {"aux_logits": True, "init_weights": True} if name == "googlenet" else {}
    source = torchvision.models.get_model(name, weights=None, **kwargs)
    torch.save(dict(source.state_dict()), tmp_path / "a.pth")
    model, _, _ = build_model(name, 4, str(tmp_path / "a.pth"))
    key = next(k for k in source.state_dict() if k.endswith("weight"))
    torch.testing.assert_close(model.state_dict()[key], source.state_dict()[key])
    assert getattr(model, "transform_input", True)
