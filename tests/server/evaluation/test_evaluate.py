"""Figures stand beside floors and intervals, equal their references, and show degenerate generators for what they are."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from server.evaluation.evaluate import Evaluator, Heldout
from server.metrics import features, fid, lpips_diversity_gap, manifold, similarity
from server.metrics.base import Figure, interval
from shared.errors import ConfigError, DataError, WeightsError

KEYS = [
    "FD-efflite0",
    "KID-efflite0",
    "MS-SSIM diversity gap",
    "NN-SSIM to held-out",
    "NN-PSNR to held-out",
    "precision",
    "recall",
    "density",
    "coverage",
]


def slices(patients: int, per_patient: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth blobs in an ellipse; those of one patient resemble each other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = []
    for _ in range(patients):
        wide, tall = rng.uniform(0.55, 0.9, 2)
        texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 10)
        for _ in range(per_patient):
            own = texture + 0.5 * ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 10)
            inside = (x / wide) ** 2 + (y / tall) ** 2 < 1
            images.append(np.clip(120 + 60 * own / own.std(), 1, 255) * inside)
    return np.stack(images).astype(np.uint8), np.repeat(np.arange(patients), per_patient)


@pytest.fixture(scope="module")
def heldout() -> Heldout:
    x_NHW, patient_N = slices(patients=6, per_patient=4, size=32, seed=0)
    return Heldout(x_NHW, patient_N, np.zeros(len(x_NHW), int))


@pytest.fixture(scope="module")
def evaluator(heldout: Heldout) -> Evaluator:
    return Evaluator(heldout, bootstrap=40, seed=1, samples=12)


@pytest.fixture(scope="module")
def other_patients(evaluator: Evaluator) -> dict[str, Figure]:
    return evaluator(slices(patients=12, per_patient=1, size=32, seed=7)[0])


def test_every_figure_has_a_floor_and_an_interval_that_contains_it(other_patients: dict[str, Figure]) -> None:
    assert list(other_patients) == KEYS
    for figure in other_patients.values():
        assert figure.low <= figure.value <= figure.high
        assert np.isfinite(list(figure.to_dict().values())).all()
    assert other_patients["FD-efflite0"].floor > 0


def test_figures_are_what_they_have_always_been(evaluator: Evaluator) -> None:
    """Value, floor, low and high of four patients, as the first version gave them: a metric that moves breaks old comparisons."""
    known = {
        "FD-efflite0": (57.2322, 67.7974, 42.6097, 74.4622),
        "KID-efflite0": (0.0307933, 0.0546948, -0.00954922, 0.0887109),
        "MS-SSIM diversity gap": (0.0949776, 0.0735673, 0.012332, 0.169884),
        "NN-SSIM to held-out": (0.409, 0.376017, 0.326584, 0.472771),
        "NN-PSNR to held-out": (16.2092, 14.9361, 14.7055, 17.2464),
        "precision": (0.666667, 0.931667, 0.254167, 1),
        "recall": (0.791667, 0.931667, 0.339583, 1),
        "density": (1.13333, 0.650333, 0.293333, 1.845),
        "coverage": (0.916667, 0.768333, 0.46875, 1),
    }
    found = evaluator(*slices(patients=4, per_patient=3, size=32, seed=9))
    assert list(found) == list(known)
    for name, expected in known.items():
        assert tuple(found[name].to_dict().values()) == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def test_noise_is_far_above_the_floor(evaluator: Evaluator, other_patients: dict[str, Figure]) -> None:
    noise = evaluator(np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8))
    for key in ("FD-efflite0", "KID-efflite0"):
        assert noise[key].low > 3 * noise[key].floor
        assert noise[key].low > other_patients[key].high
    assert noise["MS-SSIM diversity gap"].high < -noise["MS-SSIM diversity gap"].floor  # less alike than patients are
    assert noise["NN-SSIM to held-out"].high < 0.5 * noise["NN-SSIM to held-out"].floor


def test_the_mean_image_is_collapse_and_the_diversity_gap_says_so(evaluator: Evaluator, heldout: Heldout) -> None:
    collapse = evaluator(np.repeat(heldout.x_NHW.mean(axis=0, keepdims=True).astype(np.uint8), 12, axis=0))
    gap = collapse["MS-SSIM diversity gap"]
    assert gap.low > 5 * gap.floor
    assert gap.value > 0.2


def test_copies_of_heldout_images_have_a_nearest_neighbour_of_one(evaluator: Evaluator, heldout: Heldout) -> None:
    copies = evaluator(heldout.x_NHW[::2])
    assert copies["NN-SSIM to held-out"].value == pytest.approx(1.0, abs=1e-5)
    assert copies["NN-SSIM to held-out"].floor < 0.9
    assert copies["NN-PSNR to held-out"].value == pytest.approx(60.0, abs=1e-3)
    assert copies["NN-PSNR to held-out"].floor < 40


def test_noise_has_no_precision_and_one_repeated_image_no_recall(evaluator: Evaluator, heldout: Heldout) -> None:
    noise = evaluator(np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8))
    assert noise["precision"].high == 0 < noise["precision"].floor
    assert noise["density"].value == noise["coverage"].value == 0
    one = evaluator(np.repeat(heldout.x_NHW[:1], 12, axis=0))
    assert one["precision"].value == 1
    assert one["recall"].high < one["recall"].floor
    real = evaluator(heldout.x_NHW)
    assert [real[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_precision_recall_density_coverage_are_those_of_the_papers() -> None:
    """Naeem et al. 2020, section 3 and equations 4 and 5, one image at a time."""
    rng = np.random.default_rng(3)
    real, drawn, k = rng.normal(size=(30, 4)), rng.normal(0.4, 1.3, size=(20, 4)), manifold.NEIGHBOURS
    radius_real = [np.sort([np.linalg.norm(a - b) for b in real])[k] for a in real]
    radius_drawn = [np.sort([np.linalg.norm(a - b) for b in drawn])[k] for a in drawn]
    near = [[np.linalg.norm(r - d) <= radius for d in drawn] for r, radius in zip(real, radius_real, strict=True)]
    reached = [[np.linalg.norm(r - d) <= radius for d, radius in zip(drawn, radius_drawn, strict=True)] for r in real]
    expected = (
        np.mean([any(row[j] for row in near) for j in range(20)]),
        np.mean([any(row) for row in reached]),
        np.sum(near) / (k * 20),
        np.mean([any(row) for row in near]),
    )
    products = features.Products(torch.from_numpy(real), torch.from_numpy(drawn))
    balls = manifold.manifold(*products.squared_distances())
    assert balls.figures(torch.ones(30), torch.ones(20)) == pytest.approx(expected)
    # an image that is not taken counts for nothing
    w = torch.ones(30)
    w[5:] = 0
    expected_coverage = np.mean([any(row) for row in near[:5]])
    assert balls.figures(w, torch.ones(20))[3] == pytest.approx(expected_coverage)


def test_what_is_known_of_the_held_out_images_is_kept_and_never_read_for_others(
    heldout: Heldout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = slices(patients=4, per_patient=1, size=32, seed=7)[0]

    def figures(images: Heldout, seed: int = 1) -> dict[str, Figure]:
        return Evaluator(images, bootstrap=20, seed=seed, samples=4, cache=tmp_path / "cache")(drawn)

    first = figures(heldout)
    files = {path: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    asked: list[int] = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda network, x: asked.append(len(x)) or extract(network, x))
    assert figures(heldout) == first
    assert asked == [4], "only the drawn images pass the network again"
    changed = Heldout(255 - heldout.x_NHW, heldout.patient_N, heldout.label_N)
    assert figures(changed) != first
    assert figures(heldout, seed=2) != first
    for path in files:
        path.write_bytes(b"damaged")
    assert figures(heldout) == first


def test_lpips_is_a_distance_and_only_the_original_weights_give_it(
    heldout: Heldout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsError, match="no AlexNet weights"):
        lpips_diversity_gap.Lpips(tmp_path / "absent.pth")
    (tmp_path / "other.pth").write_bytes(b"other weights")
    with pytest.raises(WeightsError, match="only the original weights"):
        lpips_diversity_gap.Lpips(tmp_path / "other.pth")
    monkeypatch.setattr(lpips_diversity_gap, "ALEXNET_SHA256", "")
    torch.save({"weight": os.getcwd}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="more than tensors"):
        lpips_diversity_gap.Lpips(tmp_path / "code.pth")
    torch.manual_seed(0)
    shapes = zip(lpips_diversity_gap.NAMES, lpips_diversity_gap.CONVOLUTIONS, strict=True)
    layers = {f"features.{name}": torch.nn.Conv2d(*shape) for name, shape in shapes}
    torch.save({f"{n}.{p}": v for n, m in layers.items() for p, v in m.state_dict().items()}, tmp_path / "alexnet.pth")
    distance = lpips_diversity_gap.Lpips(tmp_path / "alexnet.pth")
    small = similarity.shrink(heldout.x_NHW[:3])
    d = distance(small, small, np.array([[0, 0], [0, 1], [1, 0]]))
    assert d[0] == 0 < d[1]
    assert d[1] == pytest.approx(d[2])
    evaluator = Evaluator(heldout, bootstrap=20, seed=0, samples=4, options={"lpips_weights": tmp_path / "alexnet.pth"})
    assert evaluator(np.repeat(heldout.x_NHW[:1], 4, axis=0))["LPIPS diversity gap"].high < 0  # collapse


def test_the_same_images_give_the_same_figures(evaluator: Evaluator, other_patients: dict[str, Figure]) -> None:
    assert evaluator(slices(patients=12, per_patient=1, size=32, seed=7)[0]) == other_patients


def test_a_floor_needs_two_patients(heldout: Heldout) -> None:
    alone = Heldout(heldout.x_NHW, np.zeros_like(heldout.patient_N), heldout.label_N)
    with pytest.raises(DataError, match="hold out two or more"):
        Evaluator(alone, bootstrap=20, seed=0)
    with pytest.raises(DataError, match="hold out more"):
        Evaluator(Heldout(heldout.x_NHW[:5], np.array([0, 1, 1, 1, 1]), np.zeros(5, int)), bootstrap=20, seed=0)


@pytest.mark.parametrize(("patients", "per_patient", "size"), [(2, 2, 16), (4, 1, 16), (3, 2, 96)])
def test_small_and_large_images_of_few_patients_work(patients: int, per_patient: int, size: int) -> None:
    x_NHW, patient_N = slices(patients, per_patient, size, seed=3)
    figures = Evaluator(Heldout(x_NHW, patient_N, patient_N), bootstrap=20, seed=0)(x_NHW[:2])
    assert all(np.isfinite(list(figure.to_dict().values())).all() for figure in figures.values())


@pytest.mark.parametrize(
    "drawn", [np.zeros((3, 16, 16), np.uint8), np.zeros((3, 32, 32), np.float32), np.zeros((1, 32, 32), np.uint8)]
)
def test_drawn_images_that_do_not_fit_are_refused(evaluator: Evaluator, drawn: np.ndarray) -> None:
    with pytest.raises(DataError, match="drawn image"):
        evaluator(drawn)


def test_heldout_images_survive_the_disk_and_a_damaged_file_is_a_clear_error(heldout: Heldout, tmp_path: Path) -> None:
    path = tmp_path / "heldout.npz"
    heldout.save(path)
    again = Heldout.load(path)
    for before, after in zip(vars(heldout).values(), vars(again).values(), strict=True):
        np.testing.assert_array_equal(before, after)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="held-out images"):
        Heldout.load(path)
    np.savez(path, x_NHW=np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="held-out images"):
        Heldout.load(path)


def test_distances_from_inner_products_equal_torchmetrics_on_resampled_sets() -> None:
    rng = np.random.default_rng(0)
    a_Nd, b_Md = torch.from_numpy(rng.normal(size=(30, 64))), torch.from_numpy(rng.normal(0.3, 1.2, size=(20, 64)))
    products = features.Products(a_Nd, b_Md)
    i, j = rng.integers(30, size=30), rng.integers(20, size=20)
    w, v = (torch.from_numpy(np.bincount(k, minlength=n).astype(float)) for k, n in ((i, 30), (j, 20)))
    assert products.frechet(w, v) == pytest.approx(features.frechet(a_Nd[i], b_Md[j]), abs=1e-3)
    ones = torch.ones(20, dtype=torch.float64)  # one subset of everything: torchmetrics takes equal numbers
    assert features.Products(a_Nd[:20], b_Md).kernel(ones, ones) == pytest.approx(features.kernel(a_Nd[:20], b_Md, 0))


@pytest.mark.parametrize(("size", "within"), [(16, 1e-5), (32, 1e-5), (64, 0.01)])
def test_the_ssim_of_all_pairs_equals_torchmetrics(size: int, within: float) -> None:
    a_NHW = similarity.shrink(slices(patients=3, per_patient=1, size=size, seed=1)[0])
    b_MHW = similarity.shrink(slices(patients=2, per_patient=1, size=size, seed=2)[0])
    found = similarity.ssim(a_NHW, b_MHW)
    for i, j in np.ndindex(3, 2):
        pair = a_NHW[i, None, None], b_MHW[j, None, None]
        _, full_HW = structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)
        expected = float(full_HW[0, 0, 5:-5, 5:-5].mean())
        assert float(found[i, j]) == pytest.approx(expected, abs=within)


def test_folding_the_normalisation_does_not_move_the_features(
    heldout: Heldout, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = features.extract(features.EfficientNetLite0(), heldout.x_NHW[:2])
    monkeypatch.setattr(features, "_fuse", lambda network: None)
    plain = features.extract(features.EfficientNetLite0(), heldout.x_NHW[:2])
    assert fused.shape == (2, 1280)
    torch.testing.assert_close(fused, plain, atol=1e-4, rtol=0)


def test_an_interval_is_centred_on_the_value_and_contains_it() -> None:
    low, high = interval(5.0, list(np.random.default_rng(0).normal(9.0, 1.0, 1000)))  # a bootstrap that drifted upwards
    assert low == pytest.approx(3.0, abs=0.2)
    assert high == pytest.approx(7.0, abs=0.2)
    assert interval(5.0, [4.0] * 20) == (5.0, 5.0)


def test_only_the_original_weights_may_be_called_fid(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no Inception weights"):
        fid.inception(tmp_path / "absent.pth")
    (tmp_path / "other.pth").write_bytes(b"other weights")
    with pytest.raises(WeightsError, match="only the original weights"):
        fid.inception(tmp_path / "other.pth")


def test_inception_weights_are_tensors_only_and_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "INCEPTION_SHA256", "")
    torch.save({"weight": os.getcwd}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="more than tensors"):
        fid.inception(tmp_path / "code.pth")
    if importlib.util.find_spec("torch_fidelity") is None:
        torch.save({"weight": torch.zeros(1)}, tmp_path / "tensors.pth")
        with pytest.raises(ConfigError, match="pip install"):
            fid.inception(tmp_path / "tensors.pth")


@pytest.mark.real_data
def test_real_slices_of_other_patients_pass_and_blurred_ones_do_not(real_data: Callable[[str], Path]) -> None:
    patients = sorted(real_data("slices_dementia").glob("*/*"))[::5]
    x_PSHW = np.stack(
        [
            [np.asarray(Image.open(file).convert("L").resize((64, 64))) for file in sorted(p.iterdir())[::6]]
            for p in patients
        ]
    )
    held, others = x_PSHW[::2].reshape(-1, 64, 64), x_PSHW[1::2].reshape(-1, 64, 64)
    heldout = Heldout(held, np.repeat(np.arange(len(held) // 4), 4), np.zeros(len(held), int))
    evaluator = Evaluator(heldout, bootstrap=40, seed=0, samples=len(others))
    real, blurred = evaluator(others), evaluator(ndimage.gaussian_filter(others, (0, 1.2, 1.2)))
    for key in ("FD-efflite0", "KID-efflite0"):
        assert real[key].low < real[key].floor
        assert blurred[key].low > 2 * max(blurred[key].floor, 0)
    assert abs(real["MS-SSIM diversity gap"].value) < 0.06
    assert abs(real["NN-SSIM to held-out"].value - real["NN-SSIM to held-out"].floor) < 0.05


def test_evaluation_warns_of_nothing(evaluator: Evaluator, heldout: Heldout) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator(heldout.x_NHW[:3])
