"""Keys, signatures, and the bundle of code that a hospital approves."""
