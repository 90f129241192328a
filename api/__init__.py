"""The REST face of a node."""
