"""A real federation on this machine, and what stands between and beside its processes."""
