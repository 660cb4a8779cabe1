"""A trained classifier for notebooks and other programs: load it, predict images, and see where it looks.

Run from the checkout, or with the checkout on `PYTHONPATH`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from command_line import start_logging
from config import TrainConfig
from dataset.image_set import ImageSet
from experiment.selection import Selection
from inference.ensemble import Ensemble
from inference.images import FLAT, image_records, images_from_arrays, images_from_paths, without_flat
from localization.explainer import Explainer
from localization.methods.explanation import Settings
from localization.methods.table import METHODS, method_name
from localization.scoring.measure import Measurer
from localization.scoring.rows import MapRow
from localization.states import MapState
from utils import UserError, did_you_mean, log

Images = str | Path | np.ndarray | Sequence[str | Path] | Sequence[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ImageMap:
    """One map of one image.

    Attributes
    ----------
    path : str
        The image's file, or `array-0`, `array-1`, … for images given as arrays.
    model : str
        The run's name; for a checkpoint outside a run, the file's.
    method : str
        A key of `localization.METHODS`.
    target, predicted : str
        The class explained and the class predicted by this model.
    state : MapState
        `ok`, `empty`, `nan`, `border` or `diffuse`, as in cams.csv. Do not read an `empty` or `nan` map as evidence.
    peak : float
        The map's maximum.
    map : numpy.ndarray
        (h, w) float32 ≥ 0 on the method's own grid, not rescaled; it covers the model's input square.
    """

    path: str
    model: str
    method: str
    target: str
    predicted: str
    state: MapState
    peak: float
    map: np.ndarray


class Classifier:
    """One trained checkpoint, or several that predict the mean of their probabilities. `load_classifier` makes it.

    Attributes
    ----------
    classes : list of str
        The class names, in the order of the columns `p_CLASS`.

    Examples
    --------
    >>> from classifier import load_classifier
    >>> classifier = load_classifier("runs/NAME")
    >>> table = classifier.predict("folder/of/images")
    >>> list(table.columns)
    ['path', 'predicted', 'confidence', 'p_COVID', 'p_Lung_Opacity', 'p_Normal', 'p_Viral Pneumonia']
    >>> maps = classifier.explain("folder/of/images", method="gradcam")
    >>> len(maps) == len(table)
    True
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the columns `p_CLASS`.

        Returns
        -------
        list of str

        Examples
        --------
        >>> from classifier import load_classifier
        >>> load_classifier("runs/NAME").classes
        ['COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia']
        """
        return list(self._ensemble.classes)

    def predict(self, images: Images) -> pd.DataFrame:
        """Return the prediction for every image.

        Parameters
        ----------
        images : path, sequence of paths, numpy.ndarray or sequence of numpy.ndarray
            Files, folders of files, or pixels: (height, width), or (n, height, width); uint8 and uint16 span their
            whole range, floats are in [0, 1]. Air is dark and bone is bright.

        Returns
        -------
        pandas.DataFrame
            `path`, `predicted`, `confidence` and `p_CLASS` for each class; a row for each image, in the order given
            (the files of a folder by name). Unreadable files are left out with a warning.

        Raises
        ------
        UserError
            If a path does not exist, no image can be read, or an array has another shape, type or range.

        Examples
        --------
        >>> import numpy as np
        >>> from classifier import load_classifier
        >>> classifier = load_classifier("runs/NAME")
        >>> table = classifier.predict(np.zeros((3, 64, 64), dtype=np.uint8))
        >>> list(table["path"])
        ['array-0', 'array-1', 'array-2']
        """
        paths = _paths(images)
        if paths is not None:
            records = image_records(self._ensemble.first, paths, flag="images")
            probabilities = self._ensemble.predict(records, self._ensemble.first.data)
        else:
            probabilities = self._ensemble.predict_arrays(images)
        table = probabilities.table()
        return table[["path", "predicted", "confidence", *(f"p_{name}" for name in probabilities.classes)]]

    def explain(self, images: Images, method: str = "gradcam", target: str | None = None) -> list[ImageMap]:
        """Return where the classifier looks, with the state of every map.

        Parameters
        ----------
        images : path, sequence of paths, numpy.ndarray or sequence of numpy.ndarray
            As in `predict`. Images of one grey value are left out with a warning: they have nothing to explain.
        method : str
            A name in `localization.METHODS`, in any spelling.
        target : str, optional
            The class to explain. Default: the class that each model predicts for the image.

        Returns
        -------
        list of ImageMap
            One map for each image; of several checkpoints one for each image and checkpoint, checkpoint by checkpoint.

        Raises
        ------
        UserError
            As `predict`, and if the method or class is unknown, or the architecture cannot have the method.

        Examples
        --------
        >>> import numpy as np
        >>> from classifier import load_classifier
        >>> classifier = load_classifier("runs/NAME")
        >>> image = np.linspace(0, 1, 64 * 64).reshape(64, 64)
        >>> [map] = classifier.explain(image, method="Grad-CAM", target=classifier.classes[0])
        >>> map.target == classifier.classes[0], map.map.dtype
        (True, dtype('float32'))
        """
        if target is not None and target not in self.classes:
            near = did_you_mean(target, self.classes)
            raise UserError(f"target '{target}': unknown class{near}; choose from {', '.join(self.classes)}")
        selections = self._ensemble.selections
        return [image_map for s in selections for image_map in self._explain(s, images, method, target)]

    def _explain(self, selection: Selection, images: Images, method: str, target: str | None) -> list[ImageMap]:
        """Return the maps of one checkpoint, in the order of the images."""
        checkpoint, device = selection.checkpoint, selection.device
        settings = Settings(precision=selection.precision, batch=self._ensemble.batch)
        model = self._ensemble.model(selection)
        explainer = Explainer.from_architecture(model, checkpoint.architecture, checkpoint.size, settings=settings)
        [name] = explainer.choose(method_name(method, "method", others=""))
        chosen = self._image_set(selection, images)
        measurer = Measurer(chosen, checkpoint.fit, selection.name, controls=None)
        maps = []
        for batch in chosen.batches(device, settings.batch, checkpoint.architecture):
            targets = None if target is None else torch.full_like(batch.labels, checkpoint.classes.index(target))
            explanation = explainer.explain(batch.inputs, targets)
            grids = METHODS[name].function(explanation).cpu().numpy()
            rows, _ = measurer.rows(batch, explanation, {name: grids}, report=lambda step: None)
            maps += [_image_map(row, grid) for row, grid in zip(rows, grids, strict=True)]
        return maps

    def _image_set(self, selection: Selection, images: Images) -> ImageSet:
        """Return the images that have something to explain."""
        paths = _paths(images)
        if paths is not None:
            return images_from_paths(selection, paths, flag="images")
        return without_flat(images_from_arrays(images, selection.checkpoint), selection.data.fit, f"images: {FLAT}")


def load_classifier(
    weights: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    precision: str = "auto",
    batch: int = TrainConfig.eval_batch,
    tta: bool = False,
) -> Classifier:
    """Load a trained classifier.

    Its warnings are printed on the screen, unless the logger `cxr` already has a handler.

    Parameters
    ----------
    weights : path or sequence of paths
        A run folder (its `best.pt`) or a checkpoint; several are an ensemble, which predicts the mean of their
        probabilities.
    device : str
        `auto` (CUDA, else Apple's MPS, else the CPU), `cpu`, `cuda`, `cuda:1`, ….
    precision : str
        `fp32` or `bf16`; `auto`: as each checkpoint was trained.
    batch : int
        Images per forward pass, 1 or more.
    tta : bool
        Test-time augmentation: average the prediction for each image and its mirror image.

    Returns
    -------
    Classifier

    Raises
    ------
    UserError
        If a file is missing or is not a checkpoint written by train.py, if the checkpoints have different classes, if
        the device is unavailable, if `precision` is unknown, or if `batch` is less than 1.

    Examples
    --------
    >>> from classifier import load_classifier
    >>> classifier = load_classifier("runs/NAME")
    >>> classifier.classes
    ['COVID', 'Lung_Opacity', 'Normal', 'Viral Pneumonia']
    """
    if not log.handlers:  # a program that has set up its own keeps them
        start_logging()
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"precision '{precision}': unknown value; choose auto, fp32 or bf16")
    if batch < 1:
        raise UserError(f"batch {batch}: pass the number of images per forward pass, 1 or more")
    files = [Path(path) for path in ([weights] if isinstance(weights, (str, Path)) else weights)]
    if not files:
        raise UserError("weights: none given; pass a run folder or a checkpoint")
    return Classifier(Ensemble.load(files, device=device, precision=precision, batch=batch, tta=tta))


def _paths(images: Images) -> list[Path] | None:
    """Return the paths, or None for arrays. Raises: `UserError` for a mixture of paths and arrays."""
    if isinstance(images, (str, Path, np.ndarray)):
        return None if isinstance(images, np.ndarray) else [Path(images)]
    are_paths = {isinstance(image, (str, Path)) for image in images}
    if len(are_paths) > 1:
        raise UserError("images: paths and arrays are mixed; pass one kind at a time")
    return None if are_paths == {False} else [Path(path) for path in images]


def _image_map(row: MapRow, grid: np.ndarray) -> ImageMap:
    values = {name: getattr(row, name) for name in ("path", "model", "method", "target", "predicted", "state", "peak")}
    return ImageMap(**values, map=grid.astype(np.float32))
