"""How updates combine: one file a rule, and the seam that all of them keep to (base.py); what the model does with the result."""
