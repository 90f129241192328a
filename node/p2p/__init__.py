"""Node to node: who may speak, what is said, and how it gets there. Over HTTP, under /p2p/."""
