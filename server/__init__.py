"""What the coordinator runs: the round loop, checkpoints, engines, the matrix, the report."""
