"""Parts of `scripts/calibrate.py`."""
