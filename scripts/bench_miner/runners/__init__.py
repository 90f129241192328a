"""One module for each way to run the model; `open_runner(setup)` of each is a context manager."""
