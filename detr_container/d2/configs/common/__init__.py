"""What the configurations have in common."""
