"""What is trained: one package per task."""
