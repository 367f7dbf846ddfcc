"""Made-up patients and the hospitals that hold them."""
