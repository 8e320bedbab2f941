"""Pack models into signed bundles."""
