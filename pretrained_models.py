"""The table of architectures: build a model for a number of classes, name its head and its CAM layer, load weights.

Any classification model of torchvision by its name (any case) and any of timm as `timm/NAME`. A family whose target
layer of Grad-CAM is not the one that a probe pass finds (`localization/methods/layers.py`) has a row in `CAM_LAYERS`;
nothing else is needed.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import socket
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from utils import UserError, log, read_tensors

CONNECT_SECONDS = 10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    """What a model expects of its input, and where its parts are.

    Attributes:
        name: canonical name (`resnet18`, `timm/NAME`).
        head: dotted name of the module that gives the class scores.
        size: side in pixels that its weights were trained on.
        mean, std: per channel, for pixels in [0, 1]; their length is the number of input channels.
    """

    name: str
    head: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class CamLayer:
    """The module whose output is the target activation. `relu_after`: a functional ReLU follows it in `forward`."""

    name: str
    relu_after: bool = False


def _last_relu(model: nn.Module) -> CamLayer:
    """VGG and AlexNet end in ReLU, max pooling, average pooling: the rectified map lies before the pools."""
    return CamLayer([f"features.{name}" for name, m in model.features.named_children() if isinstance(m, nn.ReLU)][-1])


def _densenet(model: nn.Module) -> CamLayer:
    """torchvision rectifies what leaves `features` in place, inside `forward`; timm's last norm holds its ReLU."""
    return CamLayer("features", relu_after=type(model).__module__.startswith("torchvision"))


# First part of the architecture's name (without timm/) → the layer.
CAM_LAYERS: dict[str, Callable[[nn.Module], CamLayer]] = {
    "resnet": lambda model: CamLayer("layer4"),
    "resnext": lambda model: CamLayer("layer4"),
    "wide_resnet": lambda model: CamLayer("layer4"),
    "vgg": _last_relu,
    "alexnet": _last_relu,
    "densenet": _densenet,
    "squeezenet": lambda model: CamLayer("features"),  # a probe would find the class scores of its convolutional head
}


def canonical_name(name: str) -> str:
    """The table's spelling of a model's name; an unknown one is a `UserError` with the nearest names."""
    wanted = name.strip().lower()
    if wanted.startswith("timm/"):
        import timm

        known = {m.lower(): m for m in timm.list_models()}
        bare, _, tag = wanted[len("timm/") :].partition(".")
        if bare in known:
            return f"timm/{known[bare]}" + (f".{tag}" if tag else "")
        near = [f"timm/{known[m]}" for m in difflib.get_close_matches(bare, known, n=3, cutoff=0.4)]
    else:
        known = {m.lower(): m for m in _torchvision_names()}
        if wanted in known:
            return known[wanted]
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4)
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    raise UserError(f"--model {name}: no such model{hint}; give a torchvision classification model, or timm/NAME")


def _torchvision_names() -> list[str]:
    import torchvision.models

    return torchvision.models.list_models(module=torchvision.models)


def build_model(name: str, num_classes: int, init: str = "none") -> tuple[nn.Module, Architecture, str]:
    """Build `name` with a head for `num_classes`.

    Args:
        name: see `canonical_name`.
        num_classes: classes of the new head.
        init: `auto` (ImageNet where it is to be had, else random, loudly), `imagenet`, `none`, or a state dict's file.

    Returns: the model (float32, on the CPU), its architecture, and in words where its weights came from.
    Raises: `UserError` for an unknown name, a file that does not fit, or ImageNet weights asked for by name and absent.
    """
    name = canonical_name(name)
    backend = _Timm(name) if name.startswith("timm/") else _Torchvision(name)
    model = backend.build(num_classes)
    architecture = Architecture(name, head_name(model, num_classes), *backend.input_settings())
    if init == "none":
        return model, architecture, "random weights (--init none)"
    if init in ("auto", "imagenet"):
        try:
            backend.load_imagenet(model, architecture.head)
            return model, architecture, f"ImageNet weights ({backend.weights_name()})"
        except _NoWeights as reason:
            if init == "imagenet":
                raise UserError(
                    f"--init imagenet: no ImageNet weights of {name} ({reason}); give --init FILE, or "
                    "--init none for random weights"
                ) from None
            log.warning(
                f"no ImageNet weights of {name} ({reason}): starting from RANDOM weights, which learns "
                "slower and ends lower. --init FILE gives a state dict."
            )
            return model, architecture, f"random weights (ImageNet's could not be had: {reason})"
    dropped = load_backbone(model, read_state(Path(init), "--init"), architecture.head, init)
    return model, architecture, f"{init}" + (" (its head was dropped)" if dropped else "")


def default_size(name: str) -> int:
    """Side in pixels of the pictures that the model's weights were trained on, without building the model."""
    return (_Timm(name) if name.startswith("timm/") else _Torchvision(name)).input_settings()[0]


def check_size(model: nn.Module, architecture: Architecture, size: int) -> None:
    """Raise a `UserError` where the model cannot take pictures of `size` × `size` (transformers are built for one)."""
    if size == architecture.size:
        return
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, len(architecture.mean), size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"data.size={size}: {architecture.name} cannot take it ({str(error).splitlines()[0]}); its own "
            f"size is {architecture.size}"
        ) from None
    finally:
        model.train(training)


def head_name(model: nn.Module, num_classes: int) -> str:
    """Return the name of the last linear layer or convolution with `num_classes` outputs. Raises: `UserError`."""
    for name, module in reversed(list(model.named_modules())):
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and outputs == num_classes:
            return name
    raise UserError(f"--model: {type(model).__name__} has no classifier head that can be found")


class _NoWeights(Exception):
    """ImageNet weights that do not exist or could not be fetched, with the reason."""


class _Torchvision:
    """torchvision's constructors and weight enums."""

    def __init__(self, name: str) -> None:
        from torchvision.models import get_model_weights

        self.name = name
        weights = list(get_model_weights(name))
        self.weights = get_model_weights(name).DEFAULT if weights else None

    def build(self, num_classes: int) -> nn.Module:
        from torchvision.models import get_model

        # What torchvision sets with ImageNet weights belongs to the architecture here: a checkpoint rebuilds the same.
        own = {"aux_logits": False, "init_weights": True, "transform_input": True}
        return get_model(
            self.name,
            weights=None,
            num_classes=num_classes,
            **(own if self.name in ("googlenet", "inception_v3") else {}),
        )

    def input_settings(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        if self.weights is None:
            return 224, IMAGENET_MEAN, IMAGENET_STD
        preset = self.weights.transforms()
        return int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std)

    def weights_name(self) -> str:
        return str(self.weights)

    def load_imagenet(self, model: nn.Module, head: str) -> None:
        if self.weights is None:
            raise _NoWeights("torchvision has none")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self.weights.url.rsplit("/", 1)[1]
        if not cached.is_file():
            _check_connection(self.weights.url)
        try:
            with _socket_timeout():
                state = self.weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # URLError, a time-out, a full disk; a wrong hash
            raise _NoWeights(str(error)) from None
        load_backbone(model, state, head, str(self.weights))


class _Timm:
    """timm's constructors and pretrained configurations."""

    def __init__(self, name: str) -> None:
        from timm.models import get_pretrained_cfg

        self.name = name[len("timm/") :]
        try:
            self.pretrained = get_pretrained_cfg(self.name, allow_unregistered=False).to_dict()
        except (RuntimeError, AttributeError):  # a pretrained tag that the model does not have
            raise UserError(
                f"--model {name}: timm has no such pretrained tag; leave out what follows the dot"
            ) from None

    def build(self, num_classes: int) -> nn.Module:
        import timm

        return timm.create_model(self.name, pretrained=False, num_classes=num_classes)

    def input_settings(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        settings = self.pretrained
        return int(settings["input_size"][-1]), tuple(settings["mean"]), tuple(settings["std"])

    def weights_name(self) -> str:
        return f"timm {self.pretrained.get('architecture')}.{self.pretrained.get('tag')}"

    def load_imagenet(self, model: nn.Module, head: str) -> None:
        import timm
        from huggingface_hub import try_to_load_from_cache

        hub_id = self.pretrained.get("hf_hub_id")
        if not hub_id and not self.pretrained.get("url"):
            raise _NoWeights("timm has none")
        files = ("model.safetensors", "pytorch_model.bin")
        if not (hub_id and any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)):
            _check_connection("https://huggingface.co" if hub_id else self.pretrained["url"])
        try:
            with _socket_timeout():
                source = timm.create_model(self.name, pretrained=True, num_classes=model.num_classes)
        except (OSError, RuntimeError, ValueError) as error:
            raise _NoWeights(str(error).splitlines()[0]) from None
        model.load_state_dict(source.state_dict())


def _check_connection(url: str) -> None:
    """Give up after `CONNECT_SECONDS`, whatever hangs: a name look-up has no time-out of its own."""
    outcome: list[Exception | None] = []

    def connect() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)  # somebody answers: the download itself says what is wrong
        except (OSError, ValueError) as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not outcome:
        raise _NoWeights(f"no connection within {CONNECT_SECONDS} s")
    if outcome[0] is not None:
        raise _NoWeights(f"no connection: {getattr(outcome[0], 'reason', outcome[0])}")


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """A download that stalls ends after `CONNECT_SECONDS` instead of never."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_state(path: Path, flag: str) -> dict[str, torch.Tensor]:
    """The state dict in a file: bare, or under `model`, `state_dict` or `model_state_dict`; wrappers' prefixes cut."""
    content = read_tensors(path, flag)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{flag} {path}: holds no state dict")
    for prefix in ("module.", "_orig_mod."):  # DataParallel's and torch.compile's
        content = {k.removeprefix(prefix): v for k, v in content.items()}
    return content


# torchvision's published DenseNet weights have keys of an older naming (denselayer1.norm.1.weight).
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's second heads, which are not built


def load_backbone(model: nn.Module, state: dict[str, torch.Tensor], head: str, where: str) -> bool:
    """Load `state` into `model` in place; a head of another shape is left out. Returns: whether it was.

    Raises: `UserError` naming the first key, where anything but the head is missing, left over or of another shape.
    """
    own = model.state_dict()
    state = {_OLD_DENSENET_KEY.sub(r"\1\2", k): v for k, v in state.items() if not k.startswith(_AUXILIARY)}
    dropped = {k for k in own if k.startswith(head + ".") and (k not in state or state[k].shape != own[k].shape)}
    fitting = {k: v for k, v in state.items() if not (k.startswith(head + ".") and dropped)}
    needed = [k for k in own if k not in dropped and not k.endswith("num_batches_tracked")]
    missing = [k for k in needed if k not in fitting]
    left_over = [k for k in fitting if k not in own]
    misshapen = [k for k in fitting if k in own and fitting[k].shape != own[k].shape]
    for problem, keys in (("has no", missing), ("has the unknown", left_over), ("has another shape for", misshapen)):
        if keys:
            raise UserError(
                f"--init {where}: does not fit this model: it {problem} {keys[0]} ({len(keys)} such of {len(needed)})"
            )
    ordered = OrderedDict(fitting)
    ordered._metadata = getattr(own, "_metadata", {})  # MNASNet asks for its version, which plain files do not keep
    model.load_state_dict(ordered, strict=False)
    return bool(dropped)
