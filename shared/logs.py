"""What a service says while it runs: our own lines on standard error, with the time; Flower's own below warnings are its affair."""

from __future__ import annotations

import logging
import sys


def begin() -> None:
    """Show lines of `fedsynth` from INFO, everything else from WARNING. Flower prints its own lines itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("fedsynth").setLevel(logging.INFO)
    logging.getLogger("flwr").propagate = False
