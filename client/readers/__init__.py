"""From a folder of files to patients: which series, which volume, which slices, and what is taken off them."""
