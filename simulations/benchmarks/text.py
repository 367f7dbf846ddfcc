"""python -m simulations.benchmarks.text [--data ../shared/data] [--seed 21] [--clean 40]

What the search for text in the pixels finds: recall of each of 360 lines (5 sizes x 4 styles x 6 contrasts x 3 lines) on phantoms
and, where `--data` holds them, on real heads; of 60 more that are lost in the anatomy; the share of clean slices of each source in
which it sees text that is not there; harder cases; seconds a slice. A line counts as found when a line that counts covers half of
it; a series is withheld for any one of them. What was developed here was developed with `--seed 20`.

Contrast is in 255ths of the picture's full range: in a black corner, above the brightest value of the anatomy under it ("over"),
inside a black outline, on a box of that brightness; "blended" is added to the anatomy, "lost" lies above its mean, so that half of
the anatomy is brighter. Sizes are of the font; capitals are about 0.73 of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from client.readers import text
from simulations.cohorts import phantoms

SIZES, CONTRASTS = (8, 10, 12, 16, 24), (15, 25, 50, 80, 120, 255)
STYLES, FAINT = ("corner", "over", "outlined", "boxed"), ("blended", "lost")
ELSEWHERE = ("CT and X-ray",)  # no background for what is planted
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf")
WORDS = (
    "DOE JANE",
    "1947-12-13",
    "ID 4711932",
    "ST MARY HOSP",
    "F 47Y",
    "SMITH^JOHN",
    "Acc 88213",
    "Weiss, Anna",
    "Dr. Weiss",
)
SIDE = 256

Picture = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="real images; phantoms alone without")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--clean", type=int, default=40, help="clean slices of each source, at most")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    sources = {"phantoms": list(_phantoms(rng)), **(_real(options.data) if options.data.is_dir() else {})}
    sources = {name: [picture for picture in each if np.ptp(picture) > 0] for name, each in sources.items()}
    chosen = {name: [each[i] for i in rng.permutation(len(each))[: options.clean]] for name, each in sources.items()}
    together = [_square(picture) for name in chosen if name not in ELSEWHERE for picture in chosen[name]]
    backgrounds = [together[i] for i in rng.permutation(len(together))[:60]]
    console = Console()
    _recall(rng, backgrounds[:40], console)
    _harder(rng, backgrounds[40:], console)
    _clean(chosen, console)


def _recall(rng: np.random.Generator, backgrounds: list[Picture], console: Console) -> None:
    table = Table("style", *(str(c) for c in CONTRASTS), title="Lines found, of 15, by contrast (255ths)")
    sizes = dict.fromkeys(SIZES, 0)
    for style in (*STYLES, *FAINT):
        found = []
        for contrast in CONTRASTS:
            hits = 0
            for size in SIZES:
                picture, boxes = _written(rng, backgrounds[rng.integers(len(backgrounds))], style, size, contrast)
                here = _covered(boxes, picture)
                hits += here
                sizes[size] += here if contrast >= 25 and style in STYLES else 0
            found.append(str(hits))
        table.add_row(style, *found)
    console.print(table)
    by_size = ", ".join(f"{size} px {count}" for size, count in sizes.items())
    console.print(
        f"At 25 and more, {sum(sizes.values())} of {60 * len(SIZES)} ({', '.join(STYLES)}); of 60, by size: {by_size}"
    )


def _harder(rng: np.random.Generator, backgrounds: list[Picture], console: Console) -> None:
    """One line in each of 20 slices: withheld or not."""
    table = Table("case", "slices withheld, of 20")
    for name, words, size, value, turn, blur in (
        ("plain", "DOE JANE 1947", 12, 255, 0, 0),
        ("turned 90", "DOE JANE 1947", 12, 255, 1, 0),
        ("turned 180", "DOE JANE 1947", 12, 255, 2, 0),
        ("mirrored", "DOE JANE 1947", 12, 255, 4, 0),
        ("blurred, 1 pixel", "DOE JANE 1947", 12, 255, 0, 1),
        ("initials", "JS", 12, 255, 0, 0),
        ("one letter", "R", 12, 255, 0, 0),
        ("5 pixels high", "DOE JANE 1947", 7, 255, 0, 0),
        ("4 pixels high", "DOE JANE 1947", 5, 255, 0, 0),
        ("letters of 60 pixels", "J DOE", 60, 255, 0, 0),
        ("contrast 15", "DOE JANE 1947", 12, 15, 0, 0),
        ("contrast 8", "DOE JANE 1947", 12, 8, 0, 0),
        ("contrast 4", "DOE JANE 1947", 12, 4, 0, 0),
    ):
        withheld = 0
        for background in backgrounds:
            stamp = _stamp(words, size, (3, 3), str(rng.choice(FONTS)))
            if blur:
                stamp = np.asarray(ndimage.gaussian_filter(stamp, blur), dtype=np.float32)
            picture = np.maximum(background, stamp * value)
            picture = np.fliplr(picture) if turn == 4 else np.rot90(picture, turn)
            withheld += _seen(picture)
        table.add_row(name, str(withheld))
    console.print(table)


def _clean(sources: dict[str, list[Picture]], console: Console) -> None:
    table = Table("source", "clean slices", "with text seen", "s of a core for 256 x 256", title="False alarms")
    for name, slices in sources.items():
        wrong, spent_s = 0, []
        for picture in slices:
            started = time.process_time()
            wrong += _seen(picture)
            spent_s.append((time.process_time() - started) * SIDE**2 / picture.size)
        table.add_row(name, str(len(slices)), str(wrong), f"{np.median(spent_s):.2f}")
    console.print(table)


def _seen(picture: Picture) -> bool:
    return any(line.counts for line in text.lines(picture))


def _phantoms(rng: np.random.Generator) -> Iterator[Picture]:
    for number in range(16):
        phantom = phantoms.draw(rng, phantoms.CLASSES[number % len(phantoms.CLASSES)], phantoms.Look())
        yield from phantoms.render(phantom, 8, SIDE).astype(np.float32)


def _real(data: Path) -> dict[str, list[Picture]]:
    """Real slices by source; whole heads in all three planes."""
    found: dict[str, list[Picture]] = {}
    for name in ("slices_dementia", "slices_tumour"):
        found[name] = [_grey(path) for path in sorted((data / name).rglob("*.jpg"))[::19]]
    for path in sorted((data / "nifti_ms").rglob("study*.nii.gz")):
        volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32)
        for axis, plane in enumerate(("sagittal", "coronal", "axial")):
            levels = np.moveaxis(volume, axis, 0)[volume.shape[axis] // 8 : -volume.shape[axis] // 8 : 4]
            found.setdefault(f"nifti_ms {plane}", []).extend(level.T[::-1] for level in levels)
    for folder in sorted((data / "dicom").iterdir()):
        slices = [pydicom.dcmread(path).pixel_array.astype(np.float32) for path in sorted(folder.glob("*.dcm"))]
        if len(slices) > 40:
            found[folder.name] = slices
        else:
            found.setdefault("b0 and EPI", []).extend(slices)
    found[ELSEWHERE[0]] = [
        np.asarray(Image.open(path).convert("L").resize((SIDE, SIDE)), dtype=np.float32)
        for kind in ("HeadCT", "CXR")
        for path in sorted((data / "modalities" / "mednist64" / kind).iterdir())[::5]
    ]
    return found


def _grey(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("L"), dtype=np.float32)


def _square(picture: Picture) -> Picture:
    """(SIDE, SIDE) in [0, 200] with one pixel at 255, so that the full range is known."""
    low, high = text.window_of(picture)
    shown = Image.fromarray(np.clip((picture - low) / (high - low), 0, 1).astype(np.float32) * 200).resize((SIDE, SIDE))
    square = np.array(shown, dtype=np.float32)
    square[0, 0], square[-1, -1] = 0, 255
    return square


def _stamp(words: str, size: int, at: tuple[float, float], font: str, stroke: int = 0) -> Picture:
    canvas = Image.new("L", (SIDE, SIDE))
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    ImageDraw.Draw(canvas).text(at, words, fill=255, font=ImageFont.truetype(str(path), size), stroke_width=stroke)
    return np.asarray(np.asarray(canvas) / 255, dtype=np.float32)


def _written(
    rng: np.random.Generator, background: Picture, style: str, size: int, contrast: int
) -> tuple[Picture, list[tuple[int, int, int, int]]]:
    """The picture with three lines, and where they are: left, top, right, bottom."""
    picture, boxes = background.copy(), []
    for row, words in enumerate(rng.choice(WORDS, 3, replace=False)):
        font = str(rng.choice(FONTS))
        top = (2 + 1.7 * size * row) if style == "corner" else SIDE * (0.3 + 0.2 * row)
        at = (3.0 if style == "corner" else rng.uniform(30, 70), top)
        stamp = _stamp(words, size, at, font)
        ys, xs = np.nonzero(stamp > 0.2)
        left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
        under = picture[top:bottom, left:right]
        match style:
            case "corner":
                picture[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0  # else anatomy may hide it
                picture = np.maximum(picture, stamp * contrast)
            case "over" | "lost":
                value = min((under.max() if style == "over" else under.mean()) + contrast, 255)
                picture = picture * (1 - stamp) + stamp * value
            case "blended":
                picture = np.minimum(picture + stamp * contrast, 255)
            case "outlined":
                picture = picture * (1 - _stamp(words, size, at, font, stroke=1))
                picture = picture * (1 - stamp) + stamp * contrast
            case _:
                picture[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = contrast
                picture = picture * (1 - stamp)
        boxes.append((left, top, right, bottom))
    return np.asarray(picture, dtype=np.float32), boxes


def _covered(boxes: list[tuple[int, int, int, int]], picture: Picture) -> int:
    """How many of the boxes are covered by half by a line that counts."""
    lines = [line for line in text.lines(picture) if line.counts]
    found = 0
    for left, top, right, bottom in boxes:
        for line in lines:
            (x0, y0), (x1, y1) = line.box.min(axis=0), line.box.max(axis=0)
            width, height = min(x1, right) - max(x0, left), min(y1, bottom) - max(y0, top)
            if width > 0 and height > 0 and width * height >= 0.5 * (right - left) * (bottom - top):
                found += 1
                break
    return found


if __name__ == "__main__":
    main()
