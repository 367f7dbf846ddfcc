"""The hospital: reads, de-identifies, trains. Raw data never leaves this room."""
