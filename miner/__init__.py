"""The reference miner: runs jobs on ONNX Runtime and signs receipts."""

import os

# ONNX Runtime's official builds for Linux report models and sessions to their vendor, from 1.29 on
# (its pull request 27379). Whose jobs a miner runs is nobody else's business. The switch counts
# only if it is set before the library is loaded, which modules of this package alone do.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
