"""Attention rollouts: formulas by hand, recorded attention against explicit attention, and models without any."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, resnet18

from localization.methods import attention
from localization.methods.attention import attention_pass, record_attention, relevance, rolled_out, why_not
from pretrained_models import Architecture

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
MODELS: dict[str, tuple[Callable[[], nn.Module], int, list[int]]] = {  # builder, prefix, the tokens that are read
    "torchvision": (lambda: VisionTransformer(32, 8, 2, 2, 16, 32, 0.5, 0.5, num_classes=4), 1, [0]),
    "class token": (lambda: TimmViT(**TIMM, proj_drop_rate=0.5, attn_drop_rate=0.5), 1, [0]),
    "registers": (lambda: TimmViT(**TIMM, reg_tokens=4, qk_norm=True), 5, [0]),
    "two class tokens": (lambda: VisionTransformerDistilled(**TIMM), 2, [0, 1]),
    "mean": (lambda: TimmViT(**TIMM, global_pool="avg"), 1, [*range(1, 17)]),
    "mean, no prefix": (lambda: TimmViT(**TIMM, global_pool="avg", class_token=False), 0, [*range(16)]),
    "attention pooling": (lambda: TimmViT(**TIMM, global_pool="map", class_token=False), 0, [0]),
    "beit": (lambda: Beit(**TIMM, use_rel_pos_bias=True), 1, [*range(1, 17)]),
    "eva": (lambda: Eva(**TIMM, use_rot_pos_emb=True, swiglu_mlp=True), 1, [*range(1, 17)]),
}


def _build(kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[kind][0]().eval()
    with torch.no_grad():  # heads and position biases start as zeros
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) if "head" in name else 0.05 * torch.randn_like(parameter))
    return model


def _images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([1, 3, 0])
FIRST = torch.tensor([[[[0.5, 0.25, 0.25], [0, 1, 0], [0, 0.5, 0.5]]]])
SECOND = torch.tensor([[[[0, 0.5, 0.5], [0.5, 0.5, 0], [0, 0, 1]]]])


@pytest.mark.parametrize(
    ("readout", "expected"), [([1, 0, 0], [0.375, 0.375, 0.25]), ([0, 0.5, 0.5], [0.09375, 0.515625, 0.390625])]
)
def test_rollout_by_hand(readout: list[float], expected: list[float]) -> None:
    """½A + ½I: first block [.75 .125 .125; 0 1 0; 0 .25 .75], second [.5 .25 .25; .25 .75 0; 0 0 1].

    Their product: [.375 .375 .25; .1875 .78125 .03125; 0 .25 .75].
    """
    assert rolled_out([FIRST, SECOND], torch.tensor([readout]).float()).tolist() == [expected]
    heads = [torch.cat([block + 0.125, block - 0.125], 1) for block in (FIRST, SECOND)]  # their mean is the same
    torch.testing.assert_close(rolled_out(heads, torch.tensor([readout]).float()), torch.tensor([expected]))


def test_rollout_with_pooling_by_attention_by_hand() -> None:
    """[.2 .3 .5] times the first block's ½A + ½I: no residual connection leads into the pooled vector."""
    pooling = torch.tensor([[[[0.2, 0.3, 0.5]]]])
    rows = rolled_out([FIRST, pooling], torch.ones(1, 1))
    torch.testing.assert_close(rows, torch.tensor([[0.15, 0.025 + 0.3 + 0.125, 0.025 + 0.375]]))


@pytest.mark.parametrize(("readout", "expected"), [([1, 0, 0], [0.5, 5, 2]), ([0, 0.5, 0.5], [0.75, 1.5, 0])])
def test_gradient_rollout_by_hand(readout: list[float], expected: list[float]) -> None:
    """ReLU(∇A ⊙ A): first block [.5 1 0; 0 1 0; 0 1 0], second [0 1 2; 1 0 0; 0 0 0].

    R = [1.5 1 0; 0 2 0; 0 1 1] after the first; [1.5 5 2; 1.5 3 0; 0 1 1] after the second; less I.
    """
    gradients = [
        torch.tensor([[[[1.0, 4, -2], [3, 1, 0], [5, 2, -1]]]]),
        torch.tensor([[[[7.0, 2, 4], [2, -2, 1], [1, 1, 0]]]]),
    ]
    assert relevance([FIRST, SECOND], gradients, torch.tensor([readout]).float()).tolist() == [expected]
    # a second head without gradient halves the mean; a negative one is rectified before the mean
    for factor in (0, -1):
        twice = [block.repeat(1, 2, 1, 1) for block in (FIRST, SECOND)]
        doubled = [torch.cat([2 * g, factor * g.abs()], 1) for g in gradients]
        assert relevance(twice, doubled, torch.tensor([readout]).float()).tolist() == [expected]


def test_gradient_rollout_with_pooling_by_attention_by_hand() -> None:
    """Ā of the pooling, [0 .6 1], times R = [1.5 1 0; 0 2 0; 0 1 1] of the block before it."""
    weights = [FIRST, torch.tensor([[[[0.2, 0.3, 0.5]]]])]
    gradients = [torch.tensor([[[[1.0, 4, -2], [3, 1, 0], [5, 2, -1]]]]), torch.tensor([[[[-1.0, 2, 2]]]])]
    torch.testing.assert_close(relevance(weights, gradients, torch.ones(1, 1)), torch.tensor([[0, 2.2, 1]]))


class _Explicit(nn.Module):
    """nn.MultiheadAttention written out; `kept` holds the weights, and their gradient after a backward pass."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: torch.Tensor, *_others: torch.Tensor, need_weights: bool) -> tuple[torch.Tensor, None]:
        heads = self.source.num_heads
        packed = x @ self.source.in_proj_weight.T + self.source.in_proj_bias
        q, k, v = packed.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scaled = torch.einsum("nhqd,nhkd->nhqk", q, k) / q.shape[-1] ** 0.5
        self.kept = scaled.exp() / scaled.exp().sum(-1, keepdim=True)
        self.kept.retain_grad()
        return self.source.out_proj(torch.einsum("nhqk,nhkd->nqhd", self.kept, v).flatten(2)), None


def _explicit(kind: str, model: nn.Module) -> list[Callable[[], torch.Tensor]]:
    """Make `model` compute its attention explicitly; return functions that give it after a pass."""
    if kind == "torchvision":
        for block in model.encoder.layers:
            block.self_attention = _Explicit(block.self_attention)
        return [lambda b=block: b.self_attention.kept for block in model.encoder.layers]
    kept: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        kept[module] = output * 1
        kept[module].retain_grad()
        return kept[module]

    recorded = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
            dropped = module.attn_drop
            dropped.register_forward_hook(keep)
            recorded.append(lambda d=dropped: kept[d])
    return recorded


@pytest.mark.parametrize("kind", [k for k in MODELS if k != "attention pooling"])
def test_recorded_attention_and_its_gradients_are_those_of_an_explicit_one(kind: str) -> None:
    model, inputs = _build(kind), _images()
    recorded = record_attention(model, inputs, TARGETS)
    rival = copy.deepcopy(model)
    kept = _explicit(kind, rival)
    rival(inputs).gather(1, TARGETS[:, None]).sum().backward()
    tokens = 16 + MODELS[kind][1]
    assert len(recorded.weights) == len(kept) == 2
    for weights, gradient, explicit in zip(recorded.weights, recorded.gradients, kept, strict=True):
        assert weights.shape == (3, 2, tokens, tokens)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, tokens))
        torch.testing.assert_close(weights, explicit().detach(), rtol=1e-4, atol=1e-6)
        assert explicit().grad.abs().max() > 0
        torch.testing.assert_close(gradient, explicit().grad, rtol=1e-3, atol=1e-4 * float(explicit().grad.abs().max()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_the_readout_and_the_grid(kind: str, fused: bool) -> None:
    model, inputs = _build(kind), _images()
    _, prefix, read = MODELS[kind]
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    assert why_not(model, _architecture(model), 32) == ""
    for zeros in (False, True):  # an untrained head of zeros reads the same tokens
        recorded = record_attention(model, inputs, TARGETS)
        assert (recorded.prefix, recorded.grid) == (prefix, (4, 4))
        assert recorded.readout.shape[1] == (1 if kind == "attention pooling" else 16 + prefix)
        for row in recorded.readout:
            assert row.nonzero().flatten().tolist() == read
            torch.testing.assert_close(row[read], torch.full((len(read),), 1 / len(read)))
        maps = attention_pass(model, inputs, TARGETS)
        assert maps.rollout.shape == maps.gradient_rollout.shape == (3, 4, 4)
        assert (maps.rollout > 0).all()
        assert (maps.rollout.sum((1, 2)) <= 1 + 1e-5).all()
        assert bool(maps.gradient_rollout.any()) is not zeros
        for name, parameter in model.named_parameters():
            if name.startswith("head"):
                nn.init.zeros_(parameter)


@pytest.mark.parametrize("kind", ["bool", "float", None])
def test_explicit_attention_equals_torch_s(kind: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 9, 4, generator=generator)
    mask = torch.randn(9, 9, generator=generator)
    mask = {"bool": mask > -0.5, "float": mask, None: None}[kind]
    for scale in (None, 0.3):
        plain = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        with attention._Recorder() as recorder:
            explicit = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
            with torch.autocast("cpu", torch.bfloat16):
                F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        torch.testing.assert_close(explicit, plain)
        torch.testing.assert_close(recorder.weights[0] @ value, plain)
        torch.testing.assert_close(recorder.weights[1], recorder.weights[0])  # float32 under an autocast too


class _Pointer(nn.Module):
    """Two tokens before the image's; the first, which is read, attends to the brightest patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 1, 8, stride=8, bias=False)
        nn.init.ones_(self.patch.weight)
        self.head = nn.Linear(1, 4)
        nn.init.ones_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pad(self.patch(x).flatten(2).transpose(1, 2), (0, 0, 2, 0))[:, None]
        return self.head(F.scaled_dot_product_attention(torch.ones_like(x), x, x)[:, 0, 0])


def test_the_map_follows_the_attention() -> None:
    model, inputs = _Pointer(), torch.zeros(2, 3, 32, 32)
    inputs[0, :, 8:16, 24:] = 0.1
    inputs[1, :, 24:, :8] = 0.1
    maps = attention_pass(model, inputs, torch.tensor([0, 1]))
    for both in (maps.rollout, maps.gradient_rollout):
        assert both.shape == (2, 4, 4)
        assert both.flatten(1).argmax(1).tolist() == [1 * 4 + 3, 3 * 4 + 0]


@pytest.mark.parametrize("kind", ["torchvision", "class token", "attention pooling"])
def test_maps_depend_neither_on_the_batch_nor_on_its_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = _build(kind), _images(5)
    targets = torch.tensor([0, 1, 2, 3, 1])
    whole = attention_pass(model, inputs, targets)
    single = [attention_pass(model, inputs[i : i + 1], targets[i : i + 1]) for i in range(5)]
    monkeypatch.setattr(attention, "_PART_BYTES", 1)
    parts = attention_pass(model, inputs, targets)
    for name in ("rollout", "gradient_rollout"):
        maps = getattr(whole, name)
        for others in (getattr(parts, name), torch.cat([getattr(s, name) for s in single])):
            torch.testing.assert_close(others, maps, rtol=0, atol=1e-4 * float(maps.max()))
    assert not torch.allclose(whole.gradient_rollout[0], whole.gradient_rollout[1], rtol=0.1)


@pytest.mark.parametrize("kind", ["torchvision", "class token"])
def test_only_the_gradient_rollout_depends_on_the_class(kind: str) -> None:
    model, inputs = _build(kind), _images()
    one, other = (attention_pass(model, inputs, torch.full((3,), c)) for c in (0, 2))
    torch.testing.assert_close(one.rollout, other.rollout)
    assert not torch.allclose(one.gradient_rollout, other.gradient_rollout, rtol=0.1)


@pytest.mark.parametrize("kind", ["torchvision", "class token"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_unchanged(kind: str, context: type) -> None:
    model = _build(kind).train()
    norm = next(m for m in model.modules() if isinstance(m, nn.LayerNorm)).eval()
    frozen = next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outside = attention_pass(model, _images(), TARGETS)
    with context():
        maps = attention_pass(model, _images(), TARGETS)
        assert why_not(model, _architecture(model), 32) == ""
    torch.testing.assert_close(maps.gradient_rollout, outside.gradient_rollout)
    assert not maps.gradient_rollout.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not norm.training
    assert [p for p in model.parameters() if not p.requires_grad] == [frozen]
    assert all(p.grad is None for p in model.parameters())
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("kind", ["torchvision", "class token", "beit"])
def test_bf16_gives_nearly_the_same_maps(kind: str) -> None:
    model, inputs = _build(kind), _images()
    full, half = (attention_pass(model, inputs, TARGETS, precision) for precision in ("fp32", "bf16"))
    for name, most in (("rollout", 0.02), ("gradient_rollout", 0.1)):
        one, other = getattr(full, name), getattr(half, name)
        assert other.dtype == torch.float32
        assert not torch.equal(one, other)
        assert (one - other).abs().max() <= most * one.max()


def test_two_models_at_once_in_two_threads() -> None:
    models, inputs = [_build("torchvision", 1), _build("class token", 2)], _images()
    alone = [attention_pass(model, inputs, TARGETS) for model in models]
    together: list[list[attention.AttentionPass]] = [[], []]
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(8):
            together[index].append(attention_pass(models[index], inputs, TARGETS))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, many in zip(alone, together, strict=True):
        assert len(many) == 8
        for maps in many:
            torch.testing.assert_close(maps.rollout, one.rollout)
            torch.testing.assert_close(maps.gradient_rollout, one.gradient_rollout)


def _architecture(model: nn.Module) -> Architecture:
    head = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    return Architecture(name="unknown", head=head, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def _attend(x: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
    keys = x if keys is None else keys
    return F.scaled_dot_product_attention(x[:, None], keys[:, None], keys[:, None])[:, 0]


class _Toy(nn.Module):
    """A convolution to 4 × 4 patches of 10 channels, the given mixing of the 16 tokens, their mean, a linear head."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.patch, self.head, self.mix = nn.Conv2d(3, 10, 8, stride=8), nn.Linear(10, 4), mix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def _smooth(x: torch.Tensor) -> torch.Tensor:
    maps = x.transpose(1, 2).unflatten(2, (4, 4))
    return F.conv2d(maps, torch.ones(10, 1, 3, 3), padding=1, groups=10).flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (_attend, ""),
        (lambda x: _attend(_attend(x)), ""),
        (lambda x: _attend(_smooth(x)), ""),  # before the first attention, tokens are made
        (lambda x: x, "no attention between tokens"),
        (lambda x: x[:, None].softmax(2)[:, 0], "no attention between tokens"),  # over the tokens of one channel
        (
            lambda x: _attend(_attend(x.unflatten(1, (4, 4)).flatten(0, 1)).unflatten(0, (-1, 4)).flatten(1, 2)),
            "windows",
        ),
        (lambda x: _attend(_attend(x, x[:, ::4])), "between the same tokens (16 to 4, then 16 to 16)"),
        (lambda x: _attend(_attend(x)[:, :9]), "between the same tokens (16 to 16, then 9 to 9)"),
        (lambda x: _attend(x.mT).mT, "over 10 items that are not positions of a grid"),
        (lambda x: _attend(_smooth(_attend(x))), "convolutions mix its tokens"),
        (lambda x: _attend(x) + _attend(2 * x), "parallel attention branches"),
    ],
)
def test_attention_that_cannot_be_rolled_out(mix: Callable, reason: str) -> None:
    model = _Toy(mix).eval()
    refusal = why_not(model, _architecture(model), 32)
    assert reason in refusal
    assert bool(refusal) is bool(reason)


def test_cnns_and_windowed_attention_have_no_rollout() -> None:
    model = resnet18(num_classes=4)
    assert why_not(model, _architecture(model), 32) == "it has no attention between tokens"
    model = SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=4)
    assert "windows" in why_not(model, _architecture(model), 32)
