"""Serve installed models over HTTP."""
