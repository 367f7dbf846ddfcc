"""python -m simulations.benchmarks.watermark [--data FOLDER] [--images 120] [--sizes 64,128,256]

How often the invisible mark is found, and how often an unmarked image passes for marked, after what happens to images: JPEG,
cropping, noise, brightness, resizing, mirroring; in single images and in ten together. Phantoms, or any folder of images.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from server.evaluation import image_sets
from server.release import watermark
from simulations.cohorts import phantoms

SEED, SET = 0, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images; none: phantoms")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--sizes", default="64,128,256")
    options = parser.parse_args()
    table = Table(title=f"{options.images} images; found / unmarked ones that pass for marked")
    for column in ("pixels", "PSNR of the mark", "what happened", "one image", f"{SET} together"):
        table.add_column(column)
    for size in map(int, options.sizes.split(",")):
        plain = _images(options.data, options.images, size)
        marked = watermark.mark(plain)
        psnr = 10 * np.log10(255**2 / np.mean((plain.astype(float) - marked) ** 2))
        for name, change in changes(size).items():
            cells = []
            for count in (1, SET):
                rates = []
                for x_NHW in (marked, plain):
                    changed = np.stack([change(x_HW) for x_HW in x_NHW])
                    sets = [changed[i : i + count] for i in range(0, len(changed) - count + 1, count)]
                    rates.append(np.mean([watermark.score(x) >= watermark.THRESHOLD for x in sets]))
                cells.append(f"{rates[0]:.3f} / {rates[1]:.3f}")
            table.add_row(str(size), f"{psnr:.1f} dB", name, *cells)
    Console(width=110).print(table)


def changes(size: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What an image (H, W) uint8 may have gone through."""
    rng = np.random.default_rng(SEED)
    kept = slice(size // 8, size // 8 + 3 * size // 4)

    def noise(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.clip(x + rng.normal(0, sigma, x.shape), 0, 255).astype(np.uint8)

    return {
        "nothing": lambda x: x,
        "JPEG 90": lambda x: jpeg(x, 90),
        "JPEG 75": lambda x: jpeg(x, 75),
        "JPEG 50": lambda x: jpeg(x, 50),
        "three quarters kept": lambda x: x[kept, kept],
        "noise of 5": noise(5),
        "noise of 10": noise(10),
        "brighter by a fifth": lambda x: np.clip(x * 1.2, 0, 255).astype(np.uint8),
        "resized to 90 %": lambda x: np.asarray(Image.fromarray(x).resize((size * 9 // 10,) * 2)),
        "mirrored": lambda x: x[:, ::-1],
    }


def jpeg(x_HW: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(x_HW).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _images(data: Path | None, count: int, size: int) -> np.ndarray:
    if data is not None:
        return image_sets.load(image_sets.choose(image_sets.survey(data), count, SEED), size).x_NHW
    rng = np.random.default_rng(SEED)
    kinds = [phantoms.CLASSES[i % len(phantoms.CLASSES)] for i in range(-(-count // 4))]
    return np.concatenate([phantoms.render(phantoms.draw(rng, kind), 4, size) for kind in kinds])[:count]


if __name__ == "__main__":
    main()
