"""One module for each way to run the model; each has `open_runner(setup)`."""
