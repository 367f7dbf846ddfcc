"""Precision: the share of drawn images inside the ball of some real image (Kynkaanniemi et al. 2019). See manifold.py."""

from __future__ import annotations

from server.metrics.manifold import ManifoldMetric


class Precision(ManifoldMetric):
    name = "precision"
    reading = "Share of drawn images that lie among real ones. Higher is better, up to real against real."
