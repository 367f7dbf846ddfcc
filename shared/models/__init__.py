"""What a federation trains: one file a kind of model, beside the parts that kinds share."""
