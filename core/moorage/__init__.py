"""Moorage: an OCI registry that you extend in Python."""
