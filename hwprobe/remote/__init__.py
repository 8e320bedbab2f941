"""Parts of a model on other machines: workers, and the tunnels that lead to them.

The engine's own protocol for this has neither authentication nor encryption, and both its ends end
the process when the other one misbehaves. So it never leaves a machine as it is: it runs through
TLS connections between keys that know each other, and at both ends in child processes.
"""
