"""Random copies of a trained model: their stages, their weights and their batch statistics."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import nn

from localization.sanity.random_weights import STAGES, randomised, stages
from pretrained_models import Architecture, build_model

SIZE = 32
ARCHITECTURE = Architecture(name="small", head="fc", size=SIZE, mean=(0.0, 0.0), std=(1.0, 1.0))


def test_stages_run_from_the_head_to_the_first_layer() -> None:
    model, architecture, _ = build_model("resnet18", 4)
    groups = stages(model, architecture, torch.randn(1, 3, 64, 64))
    names = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert groups[0] == ["fc"]
    assert groups[-1][-1] == "conv1"
    assert len(groups) == STAGES
    assert sorted(chain(*groups)) == sorted(names)
    assert {len(group) for group in groups[1:]} == {10}  # 20 convolutions and 20 normalisations
    order = list(chain(*groups))
    places = [order.index(f"layer{i}.0.conv1") for i in (4, 3, 2, 1)]
    assert places == sorted(places)


def _small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4)
    with torch.no_grad():
        for parameter in model.parameters():  # the constructor's class token and head are zeros
            parameter.normal_()
    return model


VIT = Architecture(name="small_vit", head="heads.head", size=32, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_modules_that_are_never_called_have_a_stage() -> None:
    order = list(chain(*stages(_small_vit(), VIT, torch.zeros(1, 3, 32, 32))))
    attention = "encoder.layers.encoder_layer_{}.self_attention"
    expected = [
        "heads.head",
        "encoder.layers.encoder_layer_1.mlp.0",
        attention.format(1) + ".out_proj",  # its weights are read by its parent
        "encoder.layers.encoder_layer_0.mlp.0",
        attention.format(0),
        "encoder",  # the position embedding
        "conv_proj",
        "",  # the class token
    ]
    assert [name for name in order if name in expected] == expected


def _changed(model: nn.Module, other: nn.Module) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, other.state_dict()[name])}


@pytest.mark.parametrize("stage", [0, 1, 3, STAGES])
def test_a_random_copy_changes_only_its_stages_and_not_the_model(stage: int) -> None:
    torch.manual_seed(0)
    model, architecture, _ = build_model("resnet18", 4)
    inputs = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "bn1.weight", "bn2.weight", "1.weight", "running_mean", "running_var")):
                tensor.add_(0.1 * torch.rand_like(tensor))  # else zeros and ones, that a shuffle leaves
    model.train()
    before = copy.deepcopy(model)
    with torch.inference_mode():
        fresh = randomised(model, architecture, inputs, stage)
        again, other = (randomised(model, architecture, inputs, stage, seed) for seed in (0, 1))
    assert not _changed(model, before)
    assert model.training
    assert not any(len(m._forward_pre_hooks) for m in (*model.modules(), *fresh.modules()))
    in_stages = {name for group in stages(model, architecture, inputs)[:stage] for name in group}
    assert _changed(model, fresh) == {n for n in model.state_dict() if n.rpartition(".")[0] in in_stages}
    assert not _changed(fresh, again)
    assert bool(_changed(fresh, other)) == (stage > 0)
    assert not fresh.training
    scores = fresh(inputs)
    assert torch.isfinite(scores).all()
    scores.sum().backward()  # the copy's weights are no inference tensors
    if stage > 1:
        less = randomised(model, architecture, inputs, 1)
        assert torch.equal(less.fc.weight, fresh.fc.weight)


def test_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    blocks = [(nn.Conv2d(i, 8, 3), nn.BatchNorm2d(8, momentum=0.2), nn.ReLU()) for i in (2, 8, 8)]
    model = nn.Sequential(*chain(*blocks), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    architecture, inputs = replace(ARCHITECTURE, head="12"), 5 + 3 * torch.randn(8, 2, SIZE, SIZE)
    fresh = randomised(model, architecture, inputs)
    seen = {}
    for name in ("1", "4", "7"):
        hook = lambda m, i, o, name=name: seen.__setitem__(name, (i[0], o.clone()))  # noqa: E731
        fresh.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        fresh(inputs)
    for name, (taken, given) in seen.items():
        module = fresh.get_submodule(name)
        torch.testing.assert_close(module.running_mean, taken.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(module.running_var, taken.var((0, 2, 3)), rtol=1e-2, atol=0)
        torch.testing.assert_close(given.mean((0, 2, 3)), torch.zeros(8), rtol=0, atol=1e-2)
    assert len(seen) == 3
    single = randomised(model, architecture, inputs[:1])  # one value a channel behind the pooling
    assert torch.isfinite(single(inputs)).all()


def test_a_random_network_without_normalisation_still_distinguishes_images() -> None:
    torch.manual_seed(0)
    layers = [layer for i in range(13) for layer in (nn.Conv2d(16 if i else 2, 16, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    inputs = torch.randn(4, 2, 32, 32) + 2 * torch.randn(4, 2, 1, 1)
    fresh = randomised(model, replace(ARCHITECTURE, head="28"), inputs)

    def variety(network: nn.Module) -> float:
        with torch.no_grad():
            scores = network(inputs)
        return float(scores.std(0).mean() / scores.abs().mean())

    assert variety(fresh) > 0.03
    assert variety(model) < 1e-3  # the modules' names initialisation, which is why it is not used


def test_parameters_without_fan_in_are_shuffled() -> None:
    model = _small_vit()
    fresh = randomised(model, VIT, torch.randn(2, 3, 32, 32))
    old, new = dict(model.named_parameters()), dict(fresh.named_parameters())
    shuffled = ["class_token", "encoder.pos_embedding", "encoder.ln.weight"]
    for name in shuffled:
        assert not torch.equal(old[name], new[name])
        assert torch.equal(old[name].flatten().sort()[0], new[name].flatten().sort()[0])
    assert all(not tensor.any() for name, tensor in new.items() if name.endswith("bias"))
    projection = new["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"]
    assert float(projection.detach().std()) == pytest.approx(1 / 4, rel=0.1)  # 16 inputs
