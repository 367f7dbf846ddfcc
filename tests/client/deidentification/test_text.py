"""Text in the pixels is seen where it is kept, and takes its whole series with it. Names of cases: T01 to T08."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import FileDataset

from client import cli, dataset
from client.deidentification import export, manifest
from client.deidentification.manifest import Reason, Withheld
from client.readers import text
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError
from simulations.cohorts import phantoms

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
NAME = "DOE JANE 1947"


def written(picture: np.ndarray, value: float, words: str = NAME, *, at: tuple[int, int] = (3, 3), size: int = 12,
            font: str = "DejaVuSans.ttf") -> np.ndarray:  # fmt: skip
    """The picture with words in it; at: column and row of their upper left corner."""
    stamp = Image.new("L", picture.shape[::-1])
    ImageDraw.Draw(stamp).text(at, words, fill=255, font=ImageFont.truetype(str(FONTS / font), size))
    share = np.asarray(stamp, dtype=np.float32) / 255
    return np.asarray(picture * (1 - share) + value * share, dtype=picture.dtype)


def seen(picture: np.ndarray) -> bool:
    try:
        text.check([picture])
    except Withheld as withheld:
        assert withheld.reason is Reason.TEXT
        return True
    return False


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """Axial slices of one digital phantom, (8, 160, 160) float32 in [0, 200]."""
    rng = np.random.default_rng(3)
    return phantoms.render(phantoms.draw(rng, "healthy", phantoms.Look()), 8, 160).astype(np.float32) * (200 / 255)


@pytest.mark.parametrize("font", ["DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf"])
@pytest.mark.parametrize(("size", "value"), [(8, 255), (10, 60), (16, 40), (24, 255)])
def test_t01_text_in_the_corner_is_seen(brain: np.ndarray, font: str, size: int, value: float) -> None:
    assert seen(written(brain[4], value, "DOE JANE", size=size, font=font))


@pytest.mark.parametrize(("style", "size"), [
    (style, size) for style in ("corner", "over", "outlined", "boxed") for size in (8, 12, 24) if (style, size) != ("outlined", 8)
])  # fmt: skip
def test_t01_the_faintest_promised_contrast_is_seen_in_every_style(brain: np.ndarray, style: str, size: int) -> None:
    """25/255 of the full range, in which the brain's brightest value is 200. Letters of 6 pixels with an outline are too small."""
    picture = brain[4].copy()
    picture[0, 0] = 255
    at = (4, 3) if style == "corner" else (45, 60)
    if style == "boxed":
        picture[at[1] : at[1] + 2 * size, at[0] : at[0] + 7 * size] = 25
        picture = written(picture, 0, "DOE JANE", at=at, size=size)
    elif style == "over":
        picture = written(picture, picture[40:120, 40:120].max() + 25, "DOE JANE", at=at, size=size)
    else:
        for across, down in ((-1, 0), (1, 0), (0, -1), (0, 1)) if style == "outlined" else ():
            picture = written(picture, 0, "DOE JANE", at=(at[0] + across, at[1] + down), size=size)
        picture = written(picture, 25, "DOE JANE", at=at, size=size)
    assert seen(picture)


@pytest.mark.parametrize(("characters", "sure", "height", "counts"), [
    (2, 0.9, 5, True), (2, 0.9, 4.9, False), (2, 0.89, 9, False), (3, 0.75, 2, True), (3, 0.74, 9, False),
    (4, 0.65, 2, True), (5, 0.64, 9, False), (6, 0.5, 2, True), (20, 0.49, 9, False),
])  # fmt: skip
def test_the_fewer_the_letters_the_surer_the_readings_must_be(
    characters: int, sure: float, height: float, counts: bool
) -> None:
    box = np.array([(0, 0), (30, 0), (30, height), (0, height)])
    assert text.Line(box, characters, sure).counts is counts


def test_a_place_is_moved_turned_and_resized_within_its_picture() -> None:
    box = np.array([(0, 0), (40, 0), (40, 10), (0, 10)], dtype=np.float32)
    nudged = list(text._nudged(box + 50, (200, 100)))
    assert len(nudged) == len(text.NUDGES)
    np.testing.assert_allclose(nudged[0], box + np.array([50.8, 50]), atol=1e-4)
    np.testing.assert_allclose(nudged[7], [(49, 49), (91, 49), (91, 61), (49, 61)], atol=1e-4)
    sides = [np.linalg.norm(each - np.roll(each, 1, axis=0), axis=1) for each in nudged[4:7]]
    np.testing.assert_allclose(sides, [[10, 40, 10, 40]] * 2 + [[11, 44, 11, 44]], atol=1e-3)
    assert all(each.min() >= 0 and each[:, 1].max() <= 19 for each in text._nudged(box, (45, 20)))


def test_t02_clean_slices_pass(brain: np.ndarray) -> None:
    assert not any(map(seen, brain))


@pytest.mark.parametrize("turn", [np.rot90, lambda x: np.rot90(x, 2), lambda x: np.rot90(x, 3), np.fliplr, np.flipud])
def test_t03_turned_and_mirrored_text_is_seen(brain: np.ndarray, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    assert seen(turn(written(brain[4], 255)))


@pytest.mark.parametrize(("words", "size"), [("JS", 14), ("47Y", 12), ("DOE JANE", 7)])
def test_t03_initials_age_and_tiny_text_are_seen(brain: np.ndarray, words: str, size: int) -> None:
    assert seen(written(brain[4], 255, words, size=size))


def test_t05_text_outside_the_display_window_is_seen() -> None:
    picture = written(np.full((128, 128), 2000.0), 60_000)
    picture[0, 0] = 0
    _, (in_window, _), (local, _), *_ = text.pictures(picture, (0, 1000))
    assert np.ptp(in_window[1:]) == np.ptp(local[64:]) == 0
    with pytest.raises(Withheld):
        text.check([picture], (0, 1000))


def test_t06_text_inside_the_brain_is_seen(brain: np.ndarray) -> None:
    assert seen(written(brain[4], 0, at=(40, 70))) and seen(written(brain[4], 255, at=(40, 70)))


def test_t07_the_floor_is_known(brain: np.ndarray) -> None:
    """Not a promise but a limit: what is fainter than the grain of the picture is not seen. It is here to be raised."""
    grain = np.random.default_rng(0).normal(0, 8, brain[4].shape)
    assert not seen(written(brain[4], 15) + grain)


def series_with(value: float, *, only: int | None = None, words: str = NAME) -> Callable[[int, FileDataset], None]:
    """Write words into each slice, or into one of them."""

    def change(index: int, ds: FileDataset) -> None:
        if only is None or index == only:
            ds.PixelData = written(ds.pixel_array.astype(np.float32), value, words, size=10).astype(np.uint16).tobytes()

    return change


def head(slices: int = 16) -> np.ndarray:
    """A smooth head (96, 96, slices) without edges that look like letters."""
    r, a, s = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), np.linspace(-0.7, 0.7, slices), indexing="ij")
    return np.asarray(800 * np.clip(1.2 - r**2 * 1.2 - a**2 - 0.5 * s**2, 0, 1) ** 0.5)


def reasons(folder: Path) -> dict[str, int]:
    return manifest.reasons(manifest.read(folder / "manifest.jsonl"))


@pytest.mark.parametrize(("flag", "value", "passes"), [
    (None, 0, True), ("NO", 0, True), ("YES", 0, False), (None, 3000, False), ("NO", 3000, False), ("YES", 3000, False),
])  # fmt: skip
def test_t08_the_flag_can_only_condemn(
    write_series: Callable[..., list[Path]], tmp_path: Path, key: bytes, flag: str | None, value: int, passes: bool
) -> None:
    change = series_with(value) if value else None
    attributes: dict[str, Any] = {"BurnedInAnnotation": flag} if flag else {}
    write_series(tmp_path / "in", head(3), change=change, **attributes)
    entries = export.export(tmp_path / "in", tmp_path / "out", key)
    expected = Reason.OK if passes else Reason.BURNED_IN if flag == "YES" else Reason.TEXT
    assert {entry.reason for entry in entries} == {expected}


def test_t04_one_slice_of_176_withholds_the_series(
    write_series: Callable[..., list[Path]], tmp_path: Path, key: bytes
) -> None:
    volume = head(176)[24:72, 24:72]
    write_series(tmp_path / "in", volume, change=series_with(3000, only=101, words="J DOE"))
    write_series(tmp_path / "in" / "clean", volume[:, :, :3], study="2")
    entries = export.export(tmp_path / "in", tmp_path / "out", key)
    assert manifest.reasons(entries) == {"text": 176} and manifest.verdicts(entries)["PASS"] == 3
    assert len(list((tmp_path / "out").iterdir())) == 3 + 1  # nothing is left of the series, not even a temporary file


def test_clean_pixels_are_claimed_only_where_every_frame_was_looked_at(
    write_series: Callable[..., list[Path]], tmp_path: Path, key: bytes
) -> None:
    write_series(tmp_path / "in", head(3))
    for checked, codes in ((True, ["113100", "113101"]), (False, ["113100"])):
        out = tmp_path / str(checked)
        export.export(tmp_path / "in", out, key, text_check=checked)
        for path in out.glob("*.dcm"):
            ds = pydicom.dcmread(path)
            assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == codes
            assert ds.get("BurnedInAnnotation") == ("NO" if checked else None)
        header = manifest.load(out / "manifest.jsonl").header
        assert [option["CodeValue"] for option in header["options"]] == codes
        assert set(header["models"]) == ({"pp_ocrv6_det_small", "pp_ocrv6_rec_small"} if checked else set())
    cli.app(["verify", str(tmp_path / "True"), "--source", str(tmp_path / "in")], standalone_mode=False)


def run(folder: Path, kind: str, **site: Any) -> dict[str, int]:
    """Ingest folder/data; the reasons of what was withheld."""
    settings = Site(name="a", data=folder / "data", format=kind, face_removal="none", **site)
    try:
        ingest(settings, classes=["a"], image_size=32, slices_per_patient=4, work=folder / "work")
    except DataError:
        assert not list((folder / "work" / "cohort").glob("*.npz"))
    return reasons(folder / "work")


def test_a_dicom_series_with_text_gives_way_to_the_next(
    write_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    write_series(tmp_path / "data" / "1", head(20), change=series_with(3000))

    def other(index: int, ds: FileDataset) -> None:
        ds.SeriesInstanceUID += ".9"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.9"

    write_series(tmp_path / "data" / "2", head(16), change=other)
    assert run(tmp_path, "dicom") == {"text": 20}
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    assert len(patient.x_SHW) == 4


def test_a_site_may_say_that_there_is_no_text(write_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    write_series(tmp_path / "data", head(), change=series_with(3000))
    assert run(tmp_path, "dicom", text_check="none") == {}
    assert not manifest.load(tmp_path / "work" / "manifest.jsonl").header["models"]


def test_text_across_the_acquired_slices_is_seen_though_others_are_kept(tmp_path: Path) -> None:
    """Sagittal slices with a name: in the axial ones that are kept it is a row of dots, but together they would tell it."""
    volume = np.ascontiguousarray(head(96).transpose(2, 0, 1)).astype(np.float32)  # (right: 96 slices, front, top)
    for sagittal in volume[:4]:
        sagittal[:] = written(sagittal.T[::-1], 3000, size=14)[::-1].T
    for name, stored in (("sagittal", (1, 2, 0)), ("axial", (0, 1, 2))):
        affine = np.eye(4)[:, [*stored, 3]]
        (tmp_path / name / "data").mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(volume.transpose(stored), affine), tmp_path / name / "data" / "sub-a.nii")
    assert run(tmp_path / "sagittal", "nifti") == {"text": 1}
    assert run(tmp_path / "axial", "nifti") == {}


def test_one_picture_with_text_withholds_the_patient(tmp_path: Path, brain: np.ndarray) -> None:
    for patient in ("p1", "p2"):
        for number, picture in enumerate(brain[:4]):
            shown = written(picture, 255, size=14) if (patient, number) == ("p1", 2) else picture
            path = tmp_path / "data" / "a" / patient / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown.astype(np.uint8)).save(path)
    assert run(tmp_path, "images") == {"text": 4}
    assert len(dataset.load(tmp_path / "work" / "cohort")) == 1


def test_a_picture_larger_than_a_tile_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "TILE", 128)
    monkeypatch.setattr(text, "OVERLAP", 48)
    picture = np.zeros((200, 300), np.float32)
    assert seen(written(picture, 255, at=(190, 180))) and seen(
        written(picture, 255, at=(80, 60))
    )  # the latter on an edge
    assert len(list(text._tiles(picture))) == 2 * 4


def test_nothing_that_was_read_is_said_and_nothing_is_fetched(
    brain: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    text._engine.cache_clear()
    assert seen(written(brain[4], 255))
    said = capfd.readouterr()
    assert not said.out and not said.err and not caplog.records


def test_a_missing_reader_is_an_error_and_not_a_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(b"")
    with pytest.raises(DataError, match="rapidocr is missing"):
        export.export(tmp_path / "in", tmp_path / "out", key)


def test_a_reader_that_fails_withholds(monkeypatch: pytest.MonkeyPatch, brain: np.ndarray) -> None:
    class Broken:
        def __call__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError(NAME)

    monkeypatch.setattr(text, "_engine", Broken)
    with pytest.raises(Withheld) as caught:
        text.check([brain[4]])
    assert caught.value.reason is Reason.UNREADABLE and caught.value.__context__ is None


def test_a_client_that_trains_does_not_load_the_reader() -> None:
    heavy = "{'rapidocr', 'onnxruntime', 'cv2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys, client.app, client.cli; print({heavy})"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "set()"


@pytest.mark.real_data
def test_t02_whole_heads_seen_from_the_side_pass(real_data: Callable[[str], Path]) -> None:
    """Orbit, teeth and folds, which are all lines and strokes: one false alarm withholds a whole head."""
    for scanner, number in (
        ("siemens_skyra_t1", 33),
        ("siemens_skyra_t1", 45),
        ("uih_umr770_t1", 23),
        ("uih_umr770_t1", 46),
    ):
        assert not seen(pydicom.dcmread(sorted(real_data(f"dicom/{scanner}").glob("*.dcm"))[number]).pixel_array)


@pytest.mark.real_data
def test_names_burned_into_ultrasounds_are_seen(real_data: Callable[[str], Path]) -> None:
    for name in ("RGB_IMAGE", "GREYSCALE_IMAGE"):
        picture = pydicom.dcmread(real_data("deid/deid_data_ultrasounds") / f"{name}.dcm").pixel_array
        assert seen(picture if picture.ndim == 2 else picture.mean(axis=-1))
