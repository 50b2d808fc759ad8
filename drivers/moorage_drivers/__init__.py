"""Storage drivers that come with Moorage."""
