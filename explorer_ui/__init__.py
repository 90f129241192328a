"""The HTML face of a node: the explorer."""
