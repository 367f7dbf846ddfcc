"""The public bases: weights and, beside each, the card that says how they were made. Data only.

A folder of its own because Flower's app bundle shadows `shared/` at run time and carries sources alone; the weights are
installed with the package.
"""
