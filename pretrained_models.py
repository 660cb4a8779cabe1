"""The table of architectures: build a model for a number of classes, name its head and its CAM layer, load weights.

Any classification model of torchvision by its name (in any case), and any of timm as `timm/NAME`. A family needs a row
in `CAM_LAYERS` only if a probe pass (`localization/methods/layers.py`) does not find its target layer for Grad-CAM.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from utils import UserError, did_you_mean, log, read_tensors

CONNECT_SECONDS = 10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The input that a model expects, and the place of its head.

    Attributes:
        name: canonical name (`resnet18`, `timm/NAME`).
        head: dotted name of the module that gives the class scores.
        size: side in pixels of the images that its weights were trained on.
        mean, std: per channel, for pixels in [0, 1]; their length is the number of input channels.
    """

    name: str
    head: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class BuiltModel(NamedTuple):
    """A new model: float32, on the CPU."""

    model: nn.Module
    architecture: Architecture
    init: str  # where its weights came from, in words


@dataclass(frozen=True)
class CamLayer:
    """The module whose output is the target activation. `relu_after`: `forward` applies a functional ReLU to it."""

    name: str
    relu_after: bool = False


def _last_relu(model: nn.Module) -> CamLayer:
    """VGG and AlexNet end in ReLU, max pooling and average pooling; the rectified map comes before the pools."""
    return CamLayer([f"features.{name}" for name, m in model.features.named_children() if isinstance(m, nn.ReLU)][-1])


def _densenet(model: nn.Module) -> CamLayer:
    """In torchvision, `forward` rectifies the output of `features` in place; in timm, the last norm has a ReLU."""
    return CamLayer("features", relu_after=type(model).__module__.startswith("torchvision"))


# By the first part of the architecture's name, without timm/.
CAM_LAYERS: dict[str, Callable[[nn.Module], CamLayer]] = {
    "resnet": lambda model: CamLayer("layer4"),
    "resnext": lambda model: CamLayer("layer4"),
    "wide_resnet": lambda model: CamLayer("layer4"),
    "vgg": _last_relu,
    "alexnet": _last_relu,
    "densenet": _densenet,
    "squeezenet": lambda model: CamLayer("features"),  # a probe would find its convolutional head
}


def canonical_name(name: str) -> str:
    """Return the table's spelling of a model's name. Raises: `UserError` with the nearest names for an unknown one."""
    lower, tag = name.strip().lower(), ""
    if lower.startswith("timm/"):
        import timm

        lower, dot, suffix = lower.partition(".")
        tag = dot + suffix if suffix else ""
        names = {f"timm/{model}".lower(): f"timm/{model}" for model in timm.list_models()}
    else:
        import torchvision.models

        names = {model.lower(): model for model in torchvision.models.list_models(module=torchvision.models)}
    if lower in names:
        return names[lower] + tag
    near = did_you_mean(lower, names, count=3, cutoff=0.4)
    raise UserError(f"--model {name}: unknown model{near}; choose a torchvision classification model, or timm/NAME")


def build_model(name: str, num_classes: int, init: str = "none") -> BuiltModel:
    """Build a model with a head for `num_classes`.

    Args:
        name: see `canonical_name`.
        init: `auto` (ImageNet weights if they are available, else random ones with a warning), `imagenet`, `none`, or
            a file with a state dict.

    Raises: `UserError` for an unknown name, a file that does not fit, or `imagenet` without ImageNet weights.
    """
    name = canonical_name(name)
    library = _library(name)
    model = library.build(num_classes)
    architecture = library.architecture(head_name(model, num_classes))
    if init == "none":
        source = "random weights (--init none)"
    elif init in ("auto", "imagenet"):
        source = _load_imagenet(library, model, architecture, required=init == "imagenet")
    else:
        dropped = load_backbone(model, read_state(Path(init), "--init"), architecture.head, init)
        source = init + (" (its head was dropped)" if dropped else "")
    return BuiltModel(model, architecture, source)


def _load_imagenet(library: _Library, model: nn.Module, architecture: Architecture, required: bool) -> str:
    """Load ImageNet weights, or warn that there are none; return the source of the weights in words."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # a stalled download fails; by default it waits forever
    try:
        return f"ImageNet weights ({library.load_imagenet(model, architecture.head)})"
    except (OSError, RuntimeError, ValueError) as error:  # no connection, a timeout, a full disk; a wrong hash
        reason = str(error).splitlines()[0]
    finally:
        socket.setdefaulttimeout(before)
    unavailable = f"ImageNet weights of {architecture.name} are unavailable ({reason})"
    if required:
        raise UserError(f"--init imagenet: {unavailable}; pass --init FILE, or --init none for random weights")
    log.warning(
        f"{unavailable}: starting from random weights, which train more slowly and to a lower accuracy; pass --init "
        "FILE to load a state dict"
    )
    return f"random weights (ImageNet weights are unavailable: {reason})"


def default_size(name: str) -> int:
    """Return the side in pixels of the images that a model's weights were trained on, without building the model."""
    return _library(name).architecture(head="").size


def check_size(model: nn.Module, architecture: Architecture, size: int) -> None:
    """Check that the model accepts images of `size` × `size`; transformers accept one size. Raises: `UserError`."""
    if size == architecture.size:
        return
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, len(architecture.mean), size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"data.size={size}: {architecture.name} does not accept this size ({str(error).splitlines()[0]}); use "
            f"data.size={architecture.size}"
        ) from None
    finally:
        model.train(training)


def head_name(model: nn.Module, num_classes: int) -> str:
    """Return the name of the last linear layer or convolution with `num_classes` outputs. Raises: `UserError`."""
    for name, module in reversed(list(model.named_modules())):
        outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, (nn.Linear, nn.Conv2d)) and outputs == num_classes:
            return name
    raise UserError(f"--model: no classifier head found in {type(model).__name__}; choose another model")


class _Torchvision:
    """torchvision's constructors and weight enums."""

    def __init__(self, name: str) -> None:
        from torchvision.models import get_model_weights

        self.name, weights = name, get_model_weights(name)
        self.weights = weights.DEFAULT if len(weights) else None

    def build(self, num_classes: int) -> nn.Module:
        from torchvision.models import get_model

        # torchvision sets these with ImageNet weights only; set them always, so that checkpoints rebuild the model.
        options = {"aux_logits": False, "init_weights": True, "transform_input": True}
        options = options if self.name in ("googlenet", "inception_v3") else {}
        return get_model(self.name, weights=None, num_classes=num_classes, **options)

    def architecture(self, head: str) -> Architecture:
        size, mean, std = 224, IMAGENET_MEAN, IMAGENET_STD
        if self.weights is not None:
            preset = self.weights.transforms()
            size, mean, std = int(preset.crop_size[0]), tuple(preset.mean), tuple(preset.std)
        return Architecture(name=self.name, head=head, size=size, mean=mean, std=std)

    def load_imagenet(self, model: nn.Module, head: str) -> str:
        """Load the weights into `model` and return their name. Raises: `OSError`, `RuntimeError` if it cannot."""
        if self.weights is None:
            raise FileNotFoundError("torchvision has none")
        cached = Path(torch.hub.get_dir()) / "checkpoints" / self.weights.url.rsplit("/", 1)[1]
        if not cached.is_file():
            _check_connection(self.weights.url)
        load_backbone(model, self.weights.get_state_dict(progress=True, check_hash=True), head, str(self.weights))
        return str(self.weights)


class _Timm:
    """timm's constructors and pretrained configurations."""

    def __init__(self, name: str) -> None:
        from timm.models import get_pretrained_cfg

        self.name = name.removeprefix("timm/")
        try:
            self.pretrained = get_pretrained_cfg(self.name, allow_unregistered=False).to_dict()
        except (RuntimeError, AttributeError):  # a pretrained tag that the model does not have
            raise UserError(f"--model {name}: timm has no such pretrained tag; leave out the dot and the tag") from None

    def build(self, num_classes: int) -> nn.Module:
        import timm

        return timm.create_model(self.name, pretrained=False, num_classes=num_classes)

    def architecture(self, head: str) -> Architecture:
        size, mean, std = (self.pretrained[name] for name in ("input_size", "mean", "std"))
        return Architecture(name=f"timm/{self.name}", head=head, size=int(size[-1]), mean=tuple(mean), std=tuple(std))

    def load_imagenet(self, model: nn.Module, head: str) -> str:
        """Load the weights into `model` and return their name. Raises: `OSError`, `RuntimeError` if it cannot."""
        import timm
        from huggingface_hub import try_to_load_from_cache

        hub_id = self.pretrained.get("hf_hub_id")
        if not hub_id and not self.pretrained.get("url"):
            raise FileNotFoundError("timm has none")
        files = ("model.safetensors", "pytorch_model.bin")
        if not (hub_id and any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files)):
            _check_connection("https://huggingface.co" if hub_id else self.pretrained["url"])
        source = timm.create_model(self.name, pretrained=True, num_classes=model.num_classes)
        model.load_state_dict(source.state_dict())
        return f"timm {self.pretrained.get('architecture')}.{self.pretrained.get('tag')}"


_Library = _Torchvision | _Timm


def _library(name: str) -> _Library:
    return (_Timm if name.startswith("timm/") else _Torchvision)(name)


def _check_connection(url: str) -> None:
    """Check that a server answers within `CONNECT_SECONDS`, in a thread since name look-ups have no timeout.

    Raises: `ConnectionError`.
    """
    problems = [f"no connection within {CONNECT_SECONDS} s"]

    def connect() -> None:
        try:
            with contextlib.suppress(urllib.error.HTTPError):  # it answers; the download will report what is wrong
                urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()
            problems.clear()
        except (OSError, ValueError) as error:
            problems[:] = [f"no connection: {getattr(error, 'reason', error)}"]

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if problems:
        raise ConnectionError(problems[0])


def read_state(path: Path, flag: str) -> dict[str, torch.Tensor]:
    """Read a state dict: bare, or under `model`, `state_dict` or `model_state_dict`. Prefixes of wrappers are cut.

    Raises: `UserError` that names `flag` and the file.
    """
    content = read_tensors(path, flag)
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{flag} {path}: contains no state dict")
    # The prefixes of DataParallel and of torch.compile.
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in content.items()}


# torchvision's published DenseNet weights have keys of an older naming (denselayer1.norm.1.weight).
_OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # second heads of GoogLeNet and Inception, which are not built


def load_backbone(model: nn.Module, state: dict[str, torch.Tensor], head: str, where: str) -> bool:
    """Load `state` into `model` in place, without its head if that has another shape; return whether it has.

    Raises: `UserError` that names the first key, if anything but the head is missing, unknown or of another shape.
    """
    expected = model.state_dict()
    state = {_OLD_DENSENET_KEY.sub(r"\1\2", k): v for k, v in state.items() if not k.startswith(_AUXILIARY)}
    head_keys = [key for key in expected if key.startswith(head + ".")]
    dropped = {k for k in head_keys if k not in state or state[k].shape != expected[k].shape}
    fitting = {k: v for k, v in state.items() if not (dropped and k.startswith(head + "."))}
    needed = [k for k in expected if k not in dropped and not k.endswith("num_batches_tracked")]
    problems = {
        "has no": [k for k in needed if k not in fitting],
        "has the unknown": [k for k in fitting if k not in expected],
        "has another shape for": [k for k, v in fitting.items() if k in expected and v.shape != expected[k].shape],
    }
    for problem, keys in problems.items():
        if keys:
            raise UserError(f"--init {where}: {problem} {keys[0]} ({len(keys)} of {len(needed)} keys do not fit)")
    ordered = OrderedDict(fitting)
    ordered._metadata = getattr(expected, "_metadata", {})  # MNASNet reads its version there; plain files lack it
    model.load_state_dict(ordered, strict=False)
    return bool(dropped)
