"""A request for maps: methods, images, measurements and folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiment.selection import Selection
from localization.drawing.colours import COLORMAP, check_colormap
from localization.methods.explanation import Settings
from localization.methods.table import method_name
from localization.scoring.overlap import TOLERANCE
from utils import UserError


@dataclass(frozen=True, kw_only=True)
class Output:
    """Folders for the maps of one model.

    Attributes:
        folder: for overlays and tables.
        save: for the raw images and the maps (.npy); None: they are not kept.
        keep: keep the maps in memory, to compare them afterwards.
    """

    folder: Path
    save: Path | None = None
    keep: bool = False


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
        scale: the value with the brightest colour: each map's own peak (`image`), the method's highest peak in the
            batch (`batch`), or among all maps of the method (`shared`, which keeps all maps in memory until the last).
        colormap: a name of matplotlib's.
        tolerance: of the pointing game, as a share of the image's side.
        score: controls beside every map, and faithfulness on `score_count` images.
        sanity: the sanity checks, on `sanity_count` images.
        settings: of the methods, but for the precision; its seed is that of the images and the random weights too.
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
    scale: str = "image"
    colormap: str = COLORMAP
    tolerance: float = TOLERANCE
    score: bool = False
    score_count: int = 16
    sanity: bool = False
    sanity_count: int = 4
    settings: Settings = field(default_factory=Settings)
    folder: Path | None = None
    save: bool = False
    save_folder: Path | None = None

    def __post_init__(self) -> None:
        if self.errors and self.images:
            raise UserError(f"--errors {self.errors}: it chooses from the test split; leave --image out")
        if not 0 <= self.tolerance < 1:
            raise UserError(f"--tolerance {self.tolerance}: it must be a share of the image's side, from 0 to 1")
        check_colormap(self.colormap)
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
