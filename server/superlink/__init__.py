"""The coordinator on the network: authority, certificates, kits, the running server, runs."""
