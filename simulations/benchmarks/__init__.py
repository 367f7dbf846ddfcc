"""Every figure that the README quotes, one command each."""

import os

# Threads that spin while they wait would measure each other; read when torch loads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
