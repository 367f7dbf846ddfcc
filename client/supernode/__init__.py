"""The hospital on the network: its key, its node, what may run and what may pass."""
