"""Processes of their own. Modules of peers import theirs, `work` and the standard library."""
