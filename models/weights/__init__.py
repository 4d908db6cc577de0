"""Weights from files: where a file keeps them, under which names, whether they fit, and what becomes of each."""
