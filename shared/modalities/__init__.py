"""What both sides must know of each modality: one record a file, found by the file's name (`shared.modalities.base`)."""
