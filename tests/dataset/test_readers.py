"""Files to pixels: bit depths, colours, DICOM, damage, and resizing against closed forms."""

from __future__ import annotations

import contextlib
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset import readers
from dataset.readers import (
    UnreadableImage,
    fit_square,
    is_image_file,
    letterbox_frame,
    read_image,
    read_mask,
    square_image,
    square_mask,
    to_uint8,
)
from tests.helpers.dicom import write_dicom

RAMP = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)


@pytest.mark.parametrize("name", ["a.png", "b.TIF", "c.bmp", "ä ö.PNG"])
def test_eight_bits_arrive_exactly(tmp_path: Path, name: str) -> None:
    pixels = (RAMP % 256).astype(np.uint8)
    _, data = cv2.imencode(Path(name).suffix.lower(), pixels)
    (tmp_path / name).write_bytes(data.tobytes())
    assert is_image_file(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


@pytest.mark.parametrize("name", ["a.png", "b.tiff"])
def test_sixteen_bits_keep_their_declared_range(tmp_path: Path, name: str) -> None:
    pixels = RAMP * 27
    cv2.imwrite(str(tmp_path / name), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / name), pixels)
    np.testing.assert_array_equal(to_uint8(pixels), np.round(pixels / 257).astype(np.uint8))


def test_colour_and_alpha_become_grey(tmp_path: Path) -> None:
    grey = (RAMP % 256).astype(np.uint8)
    for channels in (3, 4):
        cv2.imwrite(str(tmp_path / "c.png"), np.repeat(grey[..., None], channels, 2))
        np.testing.assert_array_equal(read_image(tmp_path / "c.png"), grey)


def test_dicom_uses_the_declared_range_and_inverts_monochrome1(tmp_path: Path) -> None:
    pixels = np.array([[0, 1000], [2000, 4095]])
    write_dicom(tmp_path / "a.dcm", pixels)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm") / 65535, pixels / 4095, atol=1e-5)
    write_dicom(tmp_path / "b.DCM", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read_image(tmp_path / "b.DCM") / 65535, 1 - pixels / 4095, atol=1e-5)
    (tmp_path / "a.dcm").rename(tmp_path / "no-extension")
    np.testing.assert_allclose(read_image(tmp_path / "no-extension") / 65535, pixels / 4095, atol=1e-5)


def test_dicom_window_is_applied_before_the_inversion(tmp_path: Path) -> None:
    pixels = np.array([[0, 500], [1000, 1500]])
    window = {"WindowCenter": 1000.5, "WindowWidth": 1001, "VOILUTFunction": "LINEAR"}
    write_dicom(tmp_path / "a.dcm", pixels, **window)
    # PS3.3 C.11.2.1.2.1: y = (x - (c - 0.5)) / (w - 1) + 0.5, here (x - 1000) / 1000 + 0.5
    expected = np.array([[0, 0], [0.5, 1]])
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm") / 65535, expected, atol=1e-4)
    write_dicom(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(read_image(tmp_path / "b.dcm") / 65535, 1 - expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".dcm"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_unreadable(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64))
    if suffix == ".dcm":
        write_dicom(path, noise)
    else:
        cv2.imwrite(str(path), (noise // 16).astype(np.uint8))
    read_image(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UnreadableImage):
        read_image(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.dcm", "a.tif"])
def test_text_and_missing_files_are_unreadable(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / name)
    (tmp_path / name).write_text("not an image\n" * 50)
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / name)


def test_pixels_that_are_not_finite_are_unreadable(tmp_path: Path) -> None:
    pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    cv2.imwrite(str(tmp_path / "f.tiff"), pixels)
    np.testing.assert_allclose(read_image(tmp_path / "f.tiff") / 65535, pixels, atol=1e-4)
    pixels[3, 3] = np.nan
    cv2.imwrite(str(tmp_path / "f.tiff"), pixels)
    with pytest.raises(UnreadableImage, match="finite"):
        read_image(tmp_path / "f.tiff")


def test_shrinking_averages_areas() -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (96, 96)).astype(np.uint16)
    means = pixels.reshape(24, 4, 24, 4).mean((1, 3))
    np.testing.assert_allclose(fit_square(pixels, 24, "squash"), means, atol=0.51)
    # 299 / 112 is not an integer: the mean of the image must not change, and the finest stripes must not alias
    stripes = np.zeros((299, 299), np.float32)
    stripes[:, ::2] = 1
    small = fit_square(stripes, 112, "squash")
    assert abs(small.mean() - stripes.mean()) < 0.01
    assert small.std() < 0.2


def test_enlarging_and_mixed_shapes() -> None:
    assert fit_square(np.full((30, 500), 7, np.uint8), 64, "squash").tolist() == np.full((64, 64), 7).tolist()
    flat = fit_square(np.full((30, 500), 7, np.uint8), 64, "letterbox")
    top, left, height, width = letterbox_frame(30, 500, 64)
    assert (left, width) == (0, 64)
    assert flat.sum() == 7 * height * width
    assert (flat[top : top + height] == 7).all()


def test_letterbox_keeps_the_aspect() -> None:
    assert letterbox_frame(300, 300, 64) == (0, 0, 64, 64)
    assert letterbox_frame(200, 100, 64) == (0, 16, 64, 32)


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_masks_of_any_scale(tmp_path: Path, top: int) -> None:
    mask = np.zeros((50, 50), np.uint16 if top > 255 else np.uint8)
    mask[10:30, 20:45] = top
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask > 0)
    assert square_mask(tmp_path / "m.png", 25, "squash").sum() == pytest.approx(20 * 25 / 4, rel=0.1)


def test_an_empty_mask_is_empty(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "m.png"), np.zeros((20, 20), np.uint8))
    assert not read_mask(tmp_path / "m.png").any()


def test_square_image_is_uint8(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), RAMP * 27)
    out = square_image(tmp_path / "a.png", 20, "squash")
    assert (out.dtype, out.shape) == (np.uint8, (20, 20))


def _png(
    pixels: np.ndarray,
    filters: np.ndarray,
    spoil_raw: Callable[[bytes], bytes] = bytes,
    spoil_stream: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """Return an 8-bit grey PNG with a chosen filter (0 to 4) for each row (ISO/IEC 15948, clause 9).

    Damage is inserted before the checksums are computed, so that the decoder gets past them.
    """
    height, width = pixels.shape
    padded = np.zeros((height + 1, width + 1), np.int64)
    padded[1:, 1:] = pixels
    here, left, above, corner = padded[1:, 1:], padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    estimate = left + above - corner
    distances = [np.abs(estimate - neighbour) for neighbour in (left, above, corner)]
    paeth = np.where(
        (distances[0] <= distances[1]) & (distances[0] <= distances[2]),
        left,
        np.where(distances[1] <= distances[2], above, corner),
    )
    predictors = np.stack([np.zeros_like(here), left, above, (left + above) // 2, paeth])
    residual = (here - predictors[filters, np.arange(height)]) % 256
    raw = np.concatenate([filters[:, None], residual], 1).astype(np.uint8).tobytes()

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", spoil_stream(zlib.compress(spoil_raw(raw))))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("one_thread", [True, False])
@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
def test_grey_pngs_of_every_filter(one_thread: bool, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width), np.uint8)
    data = _png(pixels, rng.integers(0, 5, height))
    with mock.patch.object(readers, "one_thread", one_thread), tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        np.testing.assert_array_equal(read_image(Path(file.name)), pixels)


@settings(max_examples=300, deadline=None)
@given(
    where=st.sampled_from(["file", "stream", "raw"]),
    place=st.integers(0, 10**6),
    value=st.integers(1, 255),
    kept=st.floats(0, 1),
)
def test_a_damaged_png_is_read_or_refused(where: str, place: int, value: int, kept: float) -> None:
    def spoil(content: bytes) -> bytes:
        spoilt = bytearray(content)
        spoilt[place % len(spoilt)] ^= value
        return bytes(spoilt[: max(1, round(kept * len(spoilt)))] if place % 3 == 0 else spoilt)

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30), np.uint8), rng.integers(0, 5, 20)
    data = spoil(_png(*image)) if where == "file" else _png(*image, **{f"spoil_{where}": spoil})
    with mock.patch.object(readers, "one_thread", True), tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(UnreadableImage):
            assert read_image(Path(file.name)).ndim == 2


@pytest.mark.skipif(readers.decode_image_png_u8 is None, reason="kornia-rs is absent")
def test_the_fast_decoder_is_used() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30), np.uint8)
    data = _png(pixels, rng.integers(0, 5, 20))
    with mock.patch.object(readers, "one_thread", True):
        np.testing.assert_array_equal(readers._read_grey_png(data), pixels)
        colour = cv2.imencode(".png", np.dstack([pixels] * 3))[1].tobytes()
        deep = cv2.imencode(".png", pixels.astype(np.uint16))[1].tobytes()
        assert [readers._read_grey_png(d) for d in (colour, deep, b"", data[:60])] == [None] * 4
