"""What each side may have to answer for, in chained and signed lines, and who verifies them."""
