"""How both sides start Flower's programs: nothing is sent out, work is found at once, a message travels in parts."""

from __future__ import annotations

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    # s between two looks for work on this machine; 1 where nothing is said
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    # bytes; a server holds one part of every transfer that is under way, several times over, and a cut line costs one part
    "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "2097152",
}
