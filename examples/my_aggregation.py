"""A rule of aggregation of your own: the geometric median of the sites' updates (Pillutla et al. 2022, arXiv 1912.13445).

It is the point whose summed distance to all updates is least; a site that sends nonsense pulls it no farther than any other site
does. Put this file beside your experiment and name it there:

    plugins: [my_aggregation.py]
    federation:
      aggregation: {rule: geometric-median, steps: 30}
      assumed_bad_sites: 1

To make it part of fedsynth, move the class into server/aggregation/geometric_median.py: the file bears the name of the rule.
"""

from __future__ import annotations

import torch

from server.aggregation.base import Robust, Tensors, Update
from shared.config.record import Positive

NEAR = 1e-12  # a distance below this counts as this: an update may lie at the median itself


class GeometricMedian(Robust):  # `Robust` asks for 2 x assumed_bad_sites + 1 sites; `Together` for one
    name = "geometric-median"

    class Settings(Robust.Settings):
        """steps   of Weiszfeld's algorithm"""

        steps: Positive = 20

    settings: Settings

    def combine(self, updates: list[Update]) -> Tensors:
        x_SD = torch.stack([torch.cat([t.flatten().double() for t in u.tensors.values()]) for u in updates])
        weight_S = torch.tensor([u.weight for u in updates], dtype=torch.float64)
        z_D = x_SD.median(dim=0).values
        for _ in range(self.settings.steps):
            pull_S = weight_S / (x_SD - z_D).norm(dim=1).clamp_min(NEAR)
            z_D = pull_S @ x_SD / pull_S.sum()
        shapes = {name: t.shape for name, t in updates[0].tensors.items()}
        parts = z_D.float().split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
