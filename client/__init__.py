"""The hospital: reads, de-identifies, trains. Raw data never leaves this room."""

import os

# ONNX Runtime (it reads the text in pictures) otherwise keeps a device number and a log of its runs in the home folder and
# uploads them. It asks when it is loaded, so this stands before every other import of the room.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
