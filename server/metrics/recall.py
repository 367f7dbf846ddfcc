"""Recall: the share of real images inside the ball of some drawn image (Kynkaanniemi et al. 2019). See manifold.py."""

from __future__ import annotations

from server.metrics.manifold import ManifoldMetric


class Recall(ManifoldMetric):
    name = "recall"
    reading = "Share of real images that lie among drawn ones: is anything left out? Higher is better."
