"""The node process: configuration, clock, sockets, wiring."""
