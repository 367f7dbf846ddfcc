"""The coordinator: aggregates updates, evaluates on held-out data, releases. Never sees a scan of a site."""
