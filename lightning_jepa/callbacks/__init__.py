"""What watches a training run: progress, checkpoints, costs, the machine."""
