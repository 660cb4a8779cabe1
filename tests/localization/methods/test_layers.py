"""The layer that a probe picks, the grid of its output, and the layers that are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from localization.methods.cut import cut_pass
from localization.methods.layers import Layer, find_layers, probe, token_prefix
from pretrained_models import Architecture
from utils import UserError

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}


def _vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)


def _swin() -> nn.Module:
    return SwinTransformer([4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=4)


def _timm_swin() -> nn.Module:
    return TimmSwin(32, 4, embed_dim=16, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=4)


def _timm_vit(**settings: object) -> Callable[[], nn.Module]:
    return lambda: TimmViT(**TIMM | settings)


def _convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=4)


CLASS_TOKEN = "blocks.1.norm1"
PICKS: dict[str, tuple[Callable[[], nn.Module], str, str, int, int]] = {  # builder, layer, form, prefix, grid's side
    "resnet": (lambda: resnet18(num_classes=4), "layer4", "maps", 0, 2),
    "convnext": (_convnext, "features", "maps", 0, 4),
    "vit": (_vit, "encoder.layers.encoder_layer_1.ln_1", "tokens", 1, 4),
    "swin": (_swin, "norm", "maps_last", 0, 4),
    "timm swin": (_timm_swin, "norm", "maps_last", 0, 4),
    "timm vit": (_timm_vit(), CLASS_TOKEN, "tokens", 1, 4),
    "registers": (_timm_vit(reg_tokens=4), CLASS_TOKEN, "tokens", 5, 4),
    "two class tokens": (lambda: VisionTransformerDistilled(**TIMM), CLASS_TOKEN, "tokens", 2, 4),
    "odd size": (_timm_vit(img_size=35, patch_size=5), CLASS_TOKEN, "tokens", 1, 7),
    "mean of tokens": (_timm_vit(global_pool="avg"), "blocks", "tokens", 1, 4),
    "no prefix": (_timm_vit(global_pool="avg", class_token=False, fc_norm=False), "norm", "tokens", 0, 4),
    "attention pooling": (_timm_vit(global_pool="map", class_token=False), "norm", "tokens", 0, 4),
}


def _architecture(model: nn.Module, size: int = 32, name: str = "unknown") -> Architecture:
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return Architecture(name=name, head=head, size=size, mean=(0.5,) * 3, std=(0.5,) * 3)


def _build(kind: str) -> tuple[nn.Module, Architecture]:
    torch.manual_seed(0)
    model = PICKS[kind][0]()
    return model, _architecture(model, {"odd size": 35, "resnet": 64}.get(kind, 32))


def _output(model: nn.Module, name: str, image: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model.eval()(image)
    handle.remove()
    return seen[-1]


def _scores_move(model: nn.Module, layer: Layer, size: int, cells: list[int]) -> list[bool]:
    """Return for each cell whether the scores change when the layer's output changes in that cell alone."""
    image = torch.randn(1, 3, size, size)
    output = _output(model, layer.name, image)
    moved = []
    for cell in [None, *cells]:
        maps = layer.to_maps(output).clone()
        if cell is not None:
            maps[0, :, cell // maps.shape[3], cell % maps.shape[3]] += torch.randn(maps.shape[1])
        changed = layer.with_maps(output, maps)
        handle = model.get_submodule(layer.name).register_forward_hook(lambda _m, _i, _o, changed=changed: changed)
        with torch.no_grad():
            moved.append(model(image))
        handle.remove()
    return [not torch.equal(scores, moved[0]) for scores in moved[1:]]


@pytest.mark.parametrize("kind", PICKS)
def test_the_scores_depend_on_every_cell_of_the_layer_that_is_picked(kind: str) -> None:
    model, architecture = _build(kind)
    _, name, form, prefix, side = PICKS[kind]
    (layer,) = find_layers(model, architecture, architecture.size)
    assert layer == Layer(name, form, prefix)
    nn.init.normal_(model.get_submodule(architecture.head).weight)
    assert all(_scores_move(model, layer, architecture.size, [0, side - 1, side, side * side - 1]))
    images = torch.randn(2, 3, architecture.size, architecture.size)
    (features,) = cut_pass(model, [layer], images, torch.tensor([1, 3])).features
    assert features.activations.shape[2:] == (side, side)
    assert features.gradients.isfinite().all()
    assert (features.gradients.abs().sum(1) > 0).all()


@pytest.mark.parametrize("kind", ["vit", "timm vit", "registers"])
def test_after_the_layer_that_is_picked_only_the_class_token_counts(kind: str) -> None:
    """The trap: the last block's output looks like the layer before pooling, and no score depends on its grid."""
    model, architecture = _build(kind)
    nn.init.normal_(model.get_submodule(architecture.head).weight)
    last = "encoder.layers.encoder_layer_1" if kind == "vit" else "blocks.1"
    layer, reach = probe(model, architecture, 32)[last]
    assert reach == 0
    assert not any(_scores_move(model, layer, 32, [0, 5, 15]))
    with pytest.raises(UserError, match=f"--layer {last}: no class score depends on .* choose an earlier layer"):
        find_layers(model, architecture, 32, [last])
    assert find_layers(model, architecture, 32, ["encoder.layers.encoder_layer_0" if kind == "vit" else "blocks.0"])


@pytest.mark.parametrize("kind", ["resnet", "swin", "registers", "odd size"])
def test_a_cell_of_the_grid_is_at_its_place_in_the_image(kind: str) -> None:
    """Before cells are mixed, changing one patch of the image changes that cell alone, and rows are not columns."""
    model, architecture = _build(kind)
    size = architecture.size
    name = {"resnet": "conv1", "swin": "features.1.0.norm1"}.get(kind, "blocks.0.norm1")
    (layer,) = find_layers(model, architecture, size, [name])
    image = torch.randn(1, 3, size, size)
    before = layer.to_maps(_output(model, name, image))
    side = before.shape[2]
    patch, row, column = size // side, 1, side - 2
    image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 1
    changed = (layer.to_maps(_output(model, name, image)) - before).abs().sum((0, 1)) > 0
    assert changed[row, column]
    if kind == "resnet":  # its windows overlap
        rows, columns = changed.nonzero().float().mean(0)
        assert abs(rows - row) <= 1
        assert abs(columns - column) <= 1
    else:
        assert changed.sum() == 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(Layer("x"), (3, 5, 4, 4)), (Layer("x", "maps_last"), (3, 4, 4, 5)), (Layer("x", "tokens", 2), (3, 18, 5))],
)
def test_maps_convert_to_outputs_and_back(layer: Layer, shape: tuple[int, ...]) -> None:
    output = torch.randn(shape)
    maps = layer.to_maps(output)
    assert maps.shape == (3, 5, 4, 4)
    assert torch.equal(layer.with_maps(output, maps), output)
    changed = layer.with_maps(output[:1], 2 * maps)
    torch.testing.assert_close(layer.to_maps(changed), 2 * maps)
    if layer.prefix:
        assert torch.equal(changed[:, :2], output[:1, :2].expand(3, -1, -1))


def test_outputs_that_are_no_grid_are_refused() -> None:
    for layer, shape in (
        (Layer("x"), (1, 4)),
        (Layer("x", "tokens"), (1, 12, 2)),
        (Layer("x", "tokens", 1), (1, 1, 2)),
        (Layer("x", "maps_last"), (1, 9, 4)),
    ):
        with pytest.raises(UserError, match=r"layer x: its output .* is not a feature map"):
            layer.to_maps(torch.zeros(shape))


@pytest.mark.parametrize(
    ("tokens", "grids", "expected"),
    [
        (197, [(56, 56), (14, 14)], (1, (14, 14))),
        (201, [(14, 14)], (5, (14, 14))),
        (49, [(56, 56), (7, 7), (14, 14)], (0, (7, 7))),
        (25, [(5, 5), (4, 4)], (9, (4, 4))),  # the nearest convolution before it, not the largest grid
        (25, [(4, 4), (5, 5)], (0, (5, 5))),
        (198, [], (2, (14, 14))),  # no convolution before: the largest square
        (1, [], None),
        (7, [], (3, (2, 2))),
        (3, [(14, 14)], None),  # of the smallest square, at least as many tokens as before it
    ],
)
def test_prefix_of_tokens(tokens: int, grids: list[tuple[int, int]], expected: object) -> None:
    assert token_prefix(tokens, grids) == expected


def test_the_table_and_the_probe_agree_on_resnet() -> None:
    model = resnet18(num_classes=4)
    tabled = find_layers(model, _architecture(model, 64, "resnet18"), 64)
    assert tabled == find_layers(model, _architecture(model, 64, "unknown"), 64) == (Layer("layer4"),)


def test_several_layers_keep_the_order_given() -> None:
    model, architecture = _build("swin")
    names = ["norm", "features.0"]
    assert [layer.name for layer in find_layers(model, architecture, 32, names)] == names


def test_a_module_that_is_used_twice_counts_where_it_is_used_last() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), relu, nn.Conv2d(4, 4, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )
    assert find_layers(model, _architecture(model), 32) == (Layer("1"),)


def test_heads_of_attention_are_no_maps() -> None:
    """16 tokens and 16 channels a head: the norm of the queries, (1, heads, 16, 16), only looks like maps."""
    model = TimmViT(**TIMM | {"embed_dim": 32, "class_token": False, "global_pool": "avg", "qk_norm": True})
    assert _output(model, "blocks.1.attn.q_norm", torch.randn(1, 3, 32, 32)).shape == (1, 2, 16, 16)
    with pytest.raises(UserError, match=r"--layer blocks.1.attn.q_norm: its output is not a feature map"):
        find_layers(model, _architecture(model), 32, ["blocks.1.attn.q_norm"])


def test_an_unknown_layer_names_similar_ones() -> None:
    model, architecture = _build("resnet")
    with pytest.raises(UserError, match=r"--layer layer5: unknown has no such layer \(did you mean layer4"):
        find_layers(model, architecture, 64, ["layer4", "layer5"])
    with pytest.raises(
        UserError, match=r"--layer fc: its output is not a feature map .* the last layers that give one: .*layer4"
    ):
        find_layers(model, architecture, 64, ["fc"])


def test_a_model_without_any_grid_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 4))
    with pytest.raises(UserError, match="unknown has no layer whose output is a feature map"):
        find_layers(model, _architecture(model), 32)


@pytest.mark.parametrize("kind", ["resnet", "vit", "timm swin"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_unchanged(kind: str, context: type) -> None:
    model, architecture = _build(kind)
    model.train()
    first, second, *_ = model.modules()
    second.eval()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with context():
        inside = find_layers(model, architecture, 32)
    assert inside == find_layers(model, architecture, 32)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert first.training
    assert not second.training
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert all(p.grad is None for p in model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_head_of_zeros_does_not_matter() -> None:
    for kind in ("convnext", "timm vit"):
        model, architecture = _build(kind)
        picked = find_layers(model, architecture, 32)
        for parameter in model.get_submodule(architecture.head).parameters():
            nn.init.zeros_(parameter)
        assert find_layers(model, architecture, 32) == picked
    model, architecture = _build("vit")  # torchvision's own start
    assert not model.get_submodule(architecture.head).weight.any()


def test_hooks_are_removed_after_an_error() -> None:
    model, architecture = _build("vit")
    with pytest.raises(AssertionError):
        find_layers(model.train(), architecture, 40)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
