"""What a run costs and whether it works, before and beside training."""
