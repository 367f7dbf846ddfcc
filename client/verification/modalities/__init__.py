"""The judge's own tables: what may stand in a rebuilt header, one file a modality, made by hand from the standard.

Nothing here reads the records and allow-lists that the writer works by (shared/modalities, client/modalities); import-linter
holds that. How a line is written: `client.verification.expected_attributes`.
"""
