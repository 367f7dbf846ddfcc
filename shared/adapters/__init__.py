"""Which parameters of a model a hospital trains and sends: one file a kind."""
