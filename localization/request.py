"""A request for maps: methods, images, measurements and folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiment.selection import Selection
from localization.drawing.colours import check_colormap
from localization.drawing.maps import Output, Style
from localization.methods.explanation import Settings
from localization.methods.table import method_name
from utils import UserError


@dataclass(frozen=True, kw_only=True)
class ExplanationRequest:
    """The maps to draw of a model, and the measurements to make on them.

    Attributes:
        images: images or folders of images; none: images of the test split.
        count: images per class of the test split.
        errors: the number of its most confident errors to add.
        methods: names of methods; not used with `every_method`, which means those that the architecture supports.
        layers: the target layers; none: the architecture's own.
        label: the class to explain; None: the predicted class of each image.
        score: controls beside every map, and faithfulness on `score_count` images.
        sanity: the sanity checks, on `sanity_count` images.
        max_channels: channels used by Score-CAM and Ablation-CAM.
        batch: images per forward pass.
        seed: for the choice of images, noise and random weights.
        folder: for overlays and tables, with a folder in it for each of several models; None: each run's own `cams/`.
        save: keep raw images and maps (.npy) too.
        save_folder: for these; None: beside the overlays.

    Raises: `UserError` that names the flag, for a value that suits no model.
    """

    images: Sequence[Path] = ()
    count: int = 8
    errors: int = 0
    methods: Sequence[str] = ("gradcam",)
    every_method: bool = False
    layers: Sequence[str] = ()
    label: str | None = None
    style: Style = field(default_factory=Style)
    score: bool = False
    score_count: int = 16
    sanity: bool = False
    sanity_count: int = 4
    max_channels: int = Settings.max_channels
    batch: int = Settings.batch
    seed: int = 0
    folder: Path | None = None
    save: bool = False
    save_folder: Path | None = None

    def __post_init__(self) -> None:
        if self.errors and self.images:
            raise UserError(f"--errors {self.errors}: it chooses from the test split; leave --image out")
        if not 0 <= self.style.tolerance < 1:
            raise UserError(f"--tolerance {self.style.tolerance}: it must be a share of the image's side, from 0 to 1")
        check_colormap(self.style.colormap)
        for word in () if self.every_method else self.methods:
            method_name(word)

    def output(self, selection: Selection, name: str, several: bool, keep: bool) -> Output:
        """Return the folders for the model `name`, which is one of `several` or the only one.

        Raises: `UserError` if images of the request are there, since files of an earlier call are deleted.
        """
        below = name if several else "."
        folder = self.folder / below if self.folder else selection.output_folder("cams")
        save = self.save_folder / below if self.save_folder else folder
        output = Output(folder=folder, save=save if self.save else None, keep=keep)
        folders = {path.resolve() for path in (output.folder, output.save) if path is not None}
        for image in self.images:
            if {image.resolve(), image.resolve().parent} & folders:
                raise UserError(f"--image {image}: the maps go there; choose another folder for --output or --save")
        return output
