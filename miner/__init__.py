"""The reference miner: runs jobs on ONNX Runtime and signs receipts."""
