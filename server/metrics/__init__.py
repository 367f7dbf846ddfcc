"""How near drawn images are to real ones: one file a metric, and the seam that all of them keep to (base.py)."""
