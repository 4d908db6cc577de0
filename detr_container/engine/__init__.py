"""What training needs whatever the task: processes, the optimizer, checkpoints, resuming, runs."""
