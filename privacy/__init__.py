"""What one patient can reveal: clipping, noise, accounting and the hospital's ledger.

Knows nothing of Flower or DICOM.
"""
