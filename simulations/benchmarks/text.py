"""python -m simulations.benchmarks.text [--data ../shared/data] [--clean 300]

What the search for text in the pixels finds: recall of each of 360 lines (5 sizes x 4 styles x 6 contrasts x 3 lines) on phantoms
and, where `--data` holds them, on real heads; the share of clean slices in which it sees text that is not there; harder cases;
seconds a slice. A line counts as found when a line that counts covers half of it; a series is withheld for any one of them.

Contrast is in 255ths of the picture's full range: text against a black corner, against the mean of the anatomy under it, inside a
black outline, or on a box of that brightness. Sizes are of the font; capitals are about 0.73 of it.
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

from client.intake import text
from simulations import phantoms

SIZES, CONTRASTS = (8, 10, 12, 16, 24), (15, 25, 50, 80, 120, 255)
STYLES = ("corner", "anatomy", "outlined", "boxed")
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
    parser.add_argument("--clean", type=int, default=300, help="clean slices, at most")
    options = parser.parse_args()
    rng = np.random.default_rng(20)
    slices = [*_phantoms(rng), *(_real(options.data) if options.data.is_dir() else [])]
    clean = [slices[i] for i in rng.permutation(len(slices))[: options.clean]]
    console = Console()
    _recall(rng, [_square(x) for x in clean[:40]], console)
    _harder(rng, [_square(x) for x in clean[40:60]], console)
    _clean(clean, console)


def _recall(rng: np.random.Generator, backgrounds: list[Picture], console: Console) -> None:
    table = Table("style", *(str(c) for c in CONTRASTS), title="Lines found, of 15, by contrast (255ths)")
    sizes = dict.fromkeys(SIZES, 0)
    for style in STYLES:
        found = []
        for contrast in CONTRASTS:
            hits = 0
            for size in SIZES:
                picture, boxes = _written(rng, backgrounds[rng.integers(len(backgrounds))], style, size, contrast)
                here = _covered(boxes, picture)
                hits, sizes[size] = hits + here, sizes[size] + (here if contrast >= 25 else 0)
            found.append(str(hits))
        table.add_row(style, *found)
    console.print(table)
    console.print("At 25 and more, of 60, by size:", ", ".join(f"{size} px {count}" for size, count in sizes.items()))


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
            withheld += any(line.counts for shown in text.pictures(picture) for line in text.lines(shown))
        table.add_row(name, str(withheld))
    console.print(table)


def _clean(slices: list[Picture], console: Console) -> None:
    wrong, spent_s = 0, []
    for picture in slices:
        started = time.process_time()
        wrong += any(line.counts for shown in text.pictures(picture) for line in text.lines(shown))
        spent_s.append((time.process_time() - started) * SIDE**2 / picture.size)
    console.print(
        f"Clean slices in which text was seen: {wrong} of {len(slices)} ({wrong / len(slices):.1%}); "
        f"{np.median(spent_s):.2f} s of one core for a clean slice of {SIDE} x {SIDE} (median, three pictures)"
    )


def _phantoms(rng: np.random.Generator) -> Iterator[Picture]:
    for number in range(16):
        phantom = phantoms.draw(rng, phantoms.CLASSES[number % len(phantoms.CLASSES)], phantoms.Look())
        yield from phantoms.render(phantom, 8, SIDE).astype(np.float32)


def _real(data: Path) -> Iterator[Picture]:
    """Slices of real scanners: brains without skull, heads in three contrasts, the slices of five scanners as acquired."""
    for path in sorted((data / "slices_dementia").rglob("*.jpg"))[::19]:
        yield np.asarray(Image.open(path).convert("L"), dtype=np.float32)
    for path in sorted((data / "nifti_ms").rglob("study*.nii.gz")):
        volume = np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj, dtype=np.float32)
        for level in range(volume.shape[2] // 4, volume.shape[2], max(volume.shape[2] // 16, 1)):
            yield volume[::-1, ::-1, level].T
    for folder in sorted((data / "dicom").iterdir()):
        for path in sorted(folder.glob("*.dcm"))[1::4]:
            yield pydicom.dcmread(path).pixel_array.astype(np.float32)


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
        under = float(picture[top:bottom, left:right].mean())
        match style:
            case "corner":
                picture[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = 0  # else anatomy may hide it
                picture = np.maximum(picture, stamp * contrast)
            case "anatomy":
                value = under + contrast if under + contrast <= 255 else max(under - contrast, 0)
                picture = picture * (1 - stamp) + stamp * value
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
    lines = [line for shown in text.pictures(picture) for line in text.lines(shown) if line.counts]
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
