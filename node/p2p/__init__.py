"""What nodes say to each other over HTTP, under `/p2p/`."""
