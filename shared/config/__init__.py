"""Frozen settings: what an experiment, a hospital and its policy say, and how a file of them is read."""
