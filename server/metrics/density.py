"""Density: the real balls that a drawn image lies in, on average, over k (Naeem et al. 2020). See manifold.py."""

from __future__ import annotations

import math

from server.metrics.manifold import ManifoldMetric


class Density(ManifoldMetric):
    name = "density"
    reading = "How thickly real images lie around drawn ones; may pass 1. Higher is better."
    top = math.inf
