"""The ways to write one tool call: each reads it while it is being written."""
