"""What is known of each map of a batch: its row of `cams.csv`, and the rows of the controls that it has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.image_set import Batch, ImageSet
from dataset.layouts import MASKS
from dataset.readers import image_size, letterbox_frame
from localization.explainer import Explainer
from localization.methods.explanation import Explanation
from localization.methods.table import METHODS
from localization.scoring.faithfulness import FAITHFULNESS, ROUNDING, Faithfulness
from localization.scoring.overlap import (
    TOLERANCE,
    MaskScorer,
    enlarge,
    gaussian_map,
    map_states,
    oracle_map,
    uniform_map,
)
from localization.scoring.summary import SCORES
from localization.states import SCORED
from utils import shortened_name

COLUMNS = ["file", "path", "label", "predicted", "target", "method", "status", "peak", *SCORES]
CONTROL_COLUMNS = ["path", "target", "method", "control", "status", *SCORES]
HALF_ROUNDING = 0.01  # of a probability in bfloat16, whose numbers have 8 bits
Maps = Mapping[str, np.ndarray]  # method → (n, h, w)


def numbered(index: int, path: str) -> str:
    """How the files of a picture begin: its number and its stem."""
    return f"{index:04d}_{shortened_name(Path(path).stem, limit=100)}"


def file_name(name: str) -> str:
    """A class's name as a part of a file's."""
    return shortened_name(name.replace("/", "_"), limit=80)


@dataclass
class Controls:
    """What `--score` adds: controls beside every map, and faithfulness on some pictures.

    Attributes:
        randomised: the same model with fresh weights.
        faithful: the pictures (rows of the part) whose maps' faithfulness is scored, and on which costly methods are
            tried on the randomised model.
        seed: of the methods' noise and of ties.
    """

    randomised: Explainer
    faithful: frozenset[int]
    seed: int = 0


@dataclass
class _Seen:
    """A picture as it is measured: without a letterbox's padding, which is no part of it.

    Attributes:
        frame: where the picture lies in the model's square, rows and columns in pixels; None: all of it.
        squares: kind of mask (`lung`, `lesion`) → the mask over the square, (side, side) bool.
        scorers: the same kinds.
    """

    frame: tuple[slice, slice] | None
    squares: dict[str, np.ndarray]
    scorers: dict[str, MaskScorer]

    def cut(self, cam: np.ndarray, side: int) -> np.ndarray:
        """A map (h, w) over the square as one over the picture."""
        return cam if self.frame is None else enlarge(cam[None], side, side)[0][self.frame]


class Measurer:
    """Makes the rows of a part's maps.

    Args:
        part: the pictures, with their masks.
        fit: how they became squares; padding is neither scored nor counted as a part of the picture.
        classes: of the model.
        name: of the model, for tables over several.
        controls: None: the model's own maps alone.
        tolerance: of the pointing game, as a share of the picture's side.
    """

    def __init__(
        self,
        part: ImageSet,
        fit: str,
        classes: Sequence[str],
        name: str,
        controls: Controls | None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.part, self.fit, self.classes, self.name = part, fit, classes, name
        self.controls, self.tolerance = controls, tolerance

    def rows(
        self, item: Batch, explanation: Explanation, maps: Maps, say: Callable[[str], None]
    ) -> tuple[list[dict], list[dict]]:
        """The rows of the maps, picture by picture, methods in order; and those of their controls.

        Rows have the `COLUMNS` and `model`, `group`, `control`; a score is absent where there is none.

        Args:
            say: is told what is being done, for a bar.
        """
        seen = [self._seen(int(index)) for index in item.indices]
        bases = [self._base(int(index), explanation, i) for i, index in enumerate(item.indices)]
        own = {method: self._of_masks(found, seen) for method, found in maps.items()}
        faithful = self._faithful(item, explanation)
        others = self._control_maps(explanation, maps, seen, faithful, say) if self.controls else {}
        say("scores")
        for method, found in maps.items():
            self._add_faithfulness(own[method], found, faithful)
        rows = [
            bases[i]
            | {"method": method, "control": "", "file": self._file(int(index), method, bases[i])}
            | own[method][i]
            for i, index in enumerate(item.indices)
            for method in maps
        ]
        beside = []
        shared: dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]] = {}
        for method, found in maps.items():
            for control, theirs in others.get(method, {}).items():
                key = (control, found.shape[1:]) if control != "randomised" else (method, ())
                if key not in shared:
                    shared[key] = self._of_controls(theirs, seen, faithful)
                asked = set(range(len(bases)))
                if control == "randomised" and METHODS[method].costly:
                    asked = set(faithful[0].tolist()) if faithful else set()
                beside += [
                    base | {"method": method, "control": control} | scores
                    for i, (base, scores) in enumerate(zip(bases, shared[key], strict=True))
                    if i in asked
                ]
        return rows, beside

    def _seen(self, index: int) -> _Seen:
        frame = None
        if self.fit == "letterbox":
            size = image_size(Path(self.part.records["path"].iloc[index]))
            top, left, height, width = letterbox_frame(*size, self.part.side)
            frame = slice(top, top + height), slice(left, left + width)
        squares = {
            name.removesuffix("_mask"): self.part.gather(name, np.array([index]))[0].astype(bool)
            for name in MASKS
            if self.part.has(name)[index]
        }
        cut = {kind: mask if frame is None else mask[frame] for kind, mask in squares.items()}
        return _Seen(frame, squares, {kind: MaskScorer(mask, self.tolerance) for kind, mask in cut.items()})

    def _base(self, index: int, explanation: Explanation, i: int) -> dict[str, Any]:
        record = self.part.records.iloc[index]
        return {
            "model": self.name,
            "path": record["path"],
            "group": record["group"],
            "label": record["label"],
            "predicted": self.classes[int(explanation.scores[i].argmax())],
            "target": self.classes[int(explanation.targets[i])],
        }

    def _file(self, index: int, method: str, base: Mapping[str, Any]) -> str:
        return f"{numbered(index, base['path'])}__{method}__{file_name(base['target'])}.png"

    def _of_masks(self, maps: np.ndarray | Mapping[str, np.ndarray], seen: Sequence[_Seen]) -> list[dict[str, Any]]:
        """Status, peak and mask scores of one map per picture. A mapping holds one map for each kind of mask: then the
        status is that of the first kind that the picture has.
        """
        by_kind = maps if isinstance(maps, Mapping) else {"lung": maps, "lesion": maps}
        found = []
        for i, picture in enumerate(seen):
            kind = next((kind for kind in by_kind if kind in picture.scorers), next(iter(by_kind)))
            cam = by_kind[kind][i]
            row: dict[str, Any] = {"status": self._status(cam, picture), "peak": float(cam.max())}
            for kind, scorer in picture.scorers.items():
                cam = by_kind[kind][i]
                if self._status(cam, picture) in SCORED:
                    scores = scorer.scores(picture.cut(cam, self.part.side))
                    row |= {f"{kind}_{name}": value for name, value in scores.items()}
            found.append(row)
        return found

    def _status(self, cam: np.ndarray, picture: _Seen) -> str:
        """The state of a map on the picture; one whose energy all lies over the padding has no evidence in it."""
        return map_states(picture.cut(cam, self.part.side)[None])[0]

    def _control_maps(
        self,
        explanation: Explanation,
        maps: Maps,
        seen: Sequence[_Seen],
        faithful: tuple[np.ndarray, Faithfulness] | None,
        say: Callable[[str], None],
    ) -> dict[str, dict[str, Any]]:
        """Per method its controls' maps: uniform, Gaussian and oracle on its own grid, and it on the random model."""
        random = self.controls.randomised
        everywhere = random.explain(explanation.inputs, explanation.targets)
        chosen = faithful[0] if faithful else np.zeros(0, np.int64)
        places = torch.from_numpy(chosen).to(explanation.inputs.device)
        few = random.explain(explanation.inputs[places], explanation.targets[places])
        found = {}
        for method, own in maps.items():
            n, height, width = own.shape
            nothing = np.zeros((height, width), np.float32)
            say(f"{METHODS[method].title}, random weights")
            other = np.full(own.shape, np.nan, np.float32)
            if not METHODS[method].costly:
                other[:] = METHODS[method].function(everywhere).cpu().numpy()
            elif len(chosen):
                other[chosen] = METHODS[method].function(few).cpu().numpy()
            found[method] = {
                "uniform": np.repeat(uniform_map(height, width)[None], n, 0),
                "gaussian": np.repeat(gaussian_map(height, width)[None], n, 0),
                "randomised": other,
                "oracle": {
                    kind: np.stack(
                        [oracle_map(s.squares[kind], height, width) if kind in s.squares else nothing for s in seen]
                    )
                    for kind in ("lesion", "lung")
                },
            }
        return found

    def _of_controls(
        self, maps: Any, seen: Sequence[_Seen], faithful: tuple[np.ndarray, Faithfulness] | None
    ) -> list[dict[str, Any]]:
        """Scores of a control's maps. The oracle's faithfulness is that of the lesion, without one of the lungs."""
        scores = self._of_masks(maps, seen)
        if isinstance(maps, Mapping):
            lesion, lung = maps["lesion"], maps["lung"]
            maps = np.where(lesion.any((1, 2), keepdims=True), lesion, lung)
        self._add_faithfulness(scores, maps, faithful)
        return scores

    def _faithful(self, item: Batch, explanation: Explanation) -> tuple[np.ndarray, Faithfulness] | None:
        """Which pictures of the batch are asked for faithfulness, and what asks them; None: none of them."""
        if self.controls is None:
            return None
        chosen = np.flatnonzero([int(index) in self.controls.faithful for index in item.indices])
        if not len(chosen):
            return None
        places = torch.from_numpy(chosen).to(explanation.inputs.device)

        def probabilities(inputs: torch.Tensor) -> torch.Tensor:
            return explanation.predict(inputs).softmax(1)

        inputs, targets = explanation.inputs[places], explanation.targets[places]
        return chosen, Faithfulness(
            probabilities,
            inputs,
            targets,
            explanation.settings.batch,
            self.controls.seed,
            ROUNDING if explanation.settings.precision == "fp32" else HALF_ROUNDING,
        )

    def _add_faithfulness(
        self, rows: list[dict[str, Any]], maps: np.ndarray, faithful: tuple[np.ndarray, Faithfulness] | None
    ) -> None:
        if faithful is not None:
            chosen, asked = faithful
            found = asked.scores(torch.from_numpy(np.ascontiguousarray(maps[chosen])))
            for place, i in enumerate(chosen):
                rows[i] |= {name: float(found[name][place]) for name in FAITHFULNESS}
