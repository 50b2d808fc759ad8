"""Middleware and rules that come with Moorage."""
