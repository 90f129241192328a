"""Tools of the project's developers, run from the checkout."""
