"""Studies fetched from a PACS into memory, patient by patient."""
