"""Keep verified models on the target."""
