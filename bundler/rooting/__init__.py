"""Making trust roots on the connected side."""
