"""How good images are: features, distances, floors, intervals, and the tool for any two folders."""
