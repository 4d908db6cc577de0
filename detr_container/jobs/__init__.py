"""Runs as jobs: submit, sweep, status."""
