"""Coverage: the share of real balls that hold a drawn image (Naeem et al. 2020). See manifold.py."""

from __future__ import annotations

from server.metrics.manifold import ManifoldMetric


class Coverage(ManifoldMetric):
    name = "coverage"
    reading = "Share of real images with a drawn one close by. Higher is better, up to real against real."
