"""From files to grey pixels: PNG, JPEG, TIFF, BMP and DICOM, 8 and 16 bit, extensions in any case."""

from __future__ import annotations

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils import cores

try:
    from kornia_rs.io import decode_image_png_u8
except ImportError:  # not built for this platform: OpenCV reads everything
    decode_image_png_u8 = None

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES})

TIFF_ORIENTATION = 274  # the tag; 1 is upright

# The faster PNG decoder holds the interpreter's lock: use it in processes with one thread and on two or three cores.
one_thread = cores() <= 3


class UnreadableImage(Exception):
    """A file that is not an image, or not a complete one."""


def is_image_file(path: Path) -> bool:
    """Return whether `path` has an image's extension and is not hidden (as macOS's `._name.png` is)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(path: Path) -> np.ndarray:
    """Read one radiograph as it appears on a light box: bright bone, dark air.

    Returns: (height, width) uint8 or uint16, the full range of the declared bit depth.
    Raises: `UnreadableImage` with the reason, for a missing or truncated file or another format.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImage(error.strerror or str(error)) from None
    if not data:
        raise UnreadableImage("the file is empty")
    if data[128:132] == b"DICM" or Path(path).suffix.lower() in DICOM_SUFFIXES:
        return _read_dicom(data)
    if not _is_whole(data):
        raise UnreadableImage("the file is truncated")
    pixels = _read_grey_png(data)
    if pixels is not None:
        return pixels
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise UnreadableImage(str(error.err)) from None
    if pixels is None:
        raise UnreadableImage("not an image that can be decoded")
    return pixels if pixels.dtype in (np.uint8, np.uint16) else _full_range(pixels.astype(np.float32))


def image_size(path: Path) -> tuple[int, int]:
    """Return the (height, width) of `read_image`'s result, from the header of the file if possible.

    An image that may be stored rotated (EXIF data, or a TIFF orientation) is decoded. Raises: `UnreadableImage`.
    """
    from PIL import Image

    with suppress(Exception):  # Pillow and pydicom raise nearly anything for a broken file: `read_image` decides
        if Path(path).suffix.lower() in DICOM_SUFFIXES:
            import pydicom

            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(header.Rows), int(header.Columns)
        with Image.open(path) as image:  # the header only
            if "exif" not in image.info and getattr(image, "tag_v2", {}).get(TIFF_ORIENTATION, 1) == 1:
                return image.height, image.width
    return read_image(path).shape


def _read_grey_png(data: bytes) -> np.ndarray | None:
    """Decode a plain PNG of 8-bit grey, the format of most data sets, in less than half of OpenCV's time.

    Returns: None, which leaves the file to OpenCV, for any other file, for one that may be stored rotated, for one that
        cannot be decoded, and if OpenCV's threads are faster.
    """
    if not decode_image_png_u8 or not one_thread or data[12:16] != b"IHDR" or b"eXIf" in data[: data.find(b"IDAT")]:
        return None
    with suppress(Exception):  # the decoder raises nothing more specific; OpenCV reports the fault
        width, height, *kind, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
        if (*kind, interlace) == (8, 0, 0) and 0 < width * height < 2**28:
            return decode_image_png_u8(data, (height, width), "mono").reshape(height, width)
    return None


def _is_whole(data: bytes) -> bool:
    """Return whether a PNG or JPEG has its end marker: OpenCV fills the missing part of a truncated file with grey."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:]
    if data.startswith(b"\xff\xd8"):  # the end marker of an embedded thumbnail is early in the file
        return data.rfind(b"\xff\xd9") >= len(data) // 2
    return True


def _full_range(pixels: np.ndarray) -> np.ndarray:
    """Stretch floating-point pixels of unknown range to uint16; a single value becomes zeros."""
    if not np.isfinite(pixels).all():
        raise UnreadableImage("some pixels are not finite")
    low, high = float(pixels.min()), float(pixels.max())
    return ((pixels - low) * (65535 / (high - low) if high > low else 0)).round().astype(np.uint16)


def _read_dicom(data: bytes) -> np.ndarray:
    """Read one DICOM frame: modality LUT, then window or VOI LUT, then MONOCHROME1 inverted (the order of PS3.3 C.11).

    Without a window the declared range (BitsStored, PixelRepresentation) is used, not the extremes of the pixels.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        frame = pydicom.dcmread(BytesIO(data), force=False)
        values = frame.pixel_array
        if values.ndim != 2:
            raise ValueError(f"not a single grey frame: its shape is {values.shape}")
        values, (low, high) = apply_modality_lut(values, frame), _stored_range(frame)
        if "WindowCenter" in frame or "VOILUTSequence" in frame:
            values = apply_voi_lut(values, frame)
        if "VOILUTSequence" in frame:  # `apply_voi_lut` prefers it to a window, and scales to the range of its entries
            low, high = 0.0, float(2 ** int(frame.VOILUTSequence[0].LUTDescriptor[2]) - 1)
        inverted = frame.get("PhotometricInterpretation") == "MONOCHROME1"
    except Exception as error:  # pydicom and its pixel decoders raise nearly anything for a broken file
        reason = (str(error) or "broken").splitlines()[0]
        raise UnreadableImage(f"not a readable DICOM image ({reason})") from None
    unit = np.clip((np.asarray(values, np.float64) - low) / max(high - low, 1e-12), 0, 1)
    return ((1 - unit if inverted else unit) * 65535).round().astype(np.uint16)


def _stored_range(frame) -> tuple[float, float]:
    """Return the range of the stored values after the rescale slope and intercept."""
    bits, signed = int(frame.BitsStored), int(frame.get("PixelRepresentation", 0))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(frame.get("RescaleSlope", 1) or 1), float(frame.get("RescaleIntercept", 0) or 0)
    return tuple(sorted((low * slope + intercept, high * slope + intercept)))


def read_mask(path: Path) -> np.ndarray:
    """Read a mask: (height, width) bool, true for pixels above half of the mask's maximum.

    Masks are stored as 0/1, 0/255 or 0/65535; a mask of zeros is empty. Raises: `UnreadableImage`.
    """
    pixels = read_image(path)
    return pixels > pixels.max() / 2


def fit_square(pixels: np.ndarray, side: int, fit: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Resize (height, width) uint8, uint16 or float32 pixels to (side, side), antialiased.

    Shrinking averages areas (OpenCV's INTER_AREA), enlarging is bilinear.

    Args:
        fit: `squash` ignores the aspect ratio, as the seed project does; `letterbox` keeps it and pads with zeros.
        size: (height, width) that the letterbox is computed for, for a mask its image's; default: the pixels' own.
    """
    height, width = pixels.shape
    frame = letterbox_frame(*(size or pixels.shape), side) if fit == "letterbox" else Frame(0, 0, side, side)
    # Area averaging needs both sides to shrink: a long thin image is first shrunk in the direction that does.
    smaller = (min(width, frame.width), min(height, frame.height))
    if smaller != (width, height):
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (frame.width, frame.height):
        pixels = cv2.resize(pixels, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR)
    if pixels.shape == (side, side):
        return pixels
    square = np.zeros((side, side), pixels.dtype)
    square[frame.slices] = pixels
    return square


class Frame(NamedTuple):
    """The part of a square that an image covers, in pixels of the square."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the square."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def letterbox_frame(height: int, width: int, side: int) -> Frame:
    """Return the frame of a letterboxed image of `height` × `width` in a square of `side`."""
    longest = max(height, width)
    height, width = max(1, round(height * side / longest)), max(1, round(width * side / longest))
    return Frame((side - height) // 2, (side - width) // 2, height, width)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Round 16-bit pixels of full range to 8 bits; 8-bit pixels are returned as they are."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def square_image(path: Path, side: int, fit: str) -> np.ndarray:
    """Read one image as (side, side) uint8. Raises: `UnreadableImage`."""
    return to_uint8(fit_square(read_image(path), side, fit))


def square_mask(path: Path, side: int, fit: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read one mask as (side, side) uint8 of 0 and 1: 1 if at least half of the pixel's area is inside.

    `size` is the (height, width) of its image, if the letterbox is not computed for the mask's own (`fit_square`).
    """
    return (fit_square(read_mask(path).astype(np.float32), side, fit, size) >= 0.5).astype(np.uint8)
