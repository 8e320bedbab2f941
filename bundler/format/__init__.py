"""The bundle format: names, digests, manifest, envelope, chunks. What other packages may import."""
