"""Is there a face? The surface of a head is drawn from the front under five lights, and a detector of faces looks at the pictures.

The detector is scikit-image's cascade of local binary patterns (trained on photographs), whose weights come in its package. It is
easily deceived: under one or two lights it takes the hollows below a bare brain for eyes. A face is there when it is seen under
MOST of the lights, as on each real head with a whole face that it was tried on.

Left out: recognising whose face it is; hair, colour, profiles.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage.feature import Cascade

STEP_MM = 1.5
SKIN = 0.12  # of the 99th percentile: what is brighter is something
LIGHTS = ((0, 0.3, 1), (0, 0.8, 1), (0, 0, 1), (0.4, 0.5, 1), (0, 1.5, 1))  # from the right, from above, from the front
MOST = len(LIGHTS) // 2 + 1


def faces(volume_RAS: np.ndarray, spacing_mm: tuple[float, float, float]) -> int:
    """Under how many of the LIGHTS a face is seen; `volume_RAS` (right, anterior, superior)."""
    detector = Cascade(data.lbp_frontal_face_cascade_filename())  # type: ignore[no-untyped-call]
    found = (
        detector.detect_multi_scale(picture, scale_factor=1.1, step_ratio=1, min_size=(60, 60), max_size=(400, 400))
        for picture in drawn(volume_RAS, spacing_mm)
    )
    return sum(bool(places) for places in found)


def drawn(volume_RAS: np.ndarray, spacing_mm: tuple[float, float, float]) -> list[np.ndarray]:
    """One picture (H, W) uint8 a light: the largest thing in the volume, seen from the front, its head up."""
    volume = ndimage.zoom(volume_RAS.astype(np.float32), [step / STEP_MM for step in spacing_mm], order=1)
    solid = ndimage.binary_opening(ndimage.gaussian_filter(volume, 1.0) > SKIN * np.percentile(volume[volume > 0], 99))
    pieces, count = ndimage.label(solid)
    if count:
        solid = pieces == 1 + np.argmax(ndimage.sum(solid, pieces, range(1, count + 1)))
    seen = solid.any(axis=1)
    depth = ndimage.gaussian_filter(
        np.where(seen, solid.shape[1] - np.argmax(solid[:, ::-1], axis=1), 0).astype(float), 1
    )
    right, up = np.gradient(depth)
    normal = np.stack([-right, -up, np.ones_like(depth)]) / np.sqrt(right**2 + up**2 + 1)
    pictures = []
    for light in LIGHTS:
        shaded = np.clip(np.tensordot(np.array(light) / np.linalg.norm(light), normal, 1), 0, 1) * seen
        picture = Image.fromarray((shaded.T[::-1] * 255).astype(np.uint8))
        pictures.append(np.pad(np.asarray(picture.resize((2 * picture.width, 2 * picture.height))), 40))
    return pictures
