"""Whole federations on one machine, and the public phantoms they run on. Not in the wheel, not in the Flower bundle."""
