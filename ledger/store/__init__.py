"""The three SQLite files of a node, each behind one writing thread."""
