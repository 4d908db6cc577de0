"""What everything stands on: files, processes, signals, locks, the terminal. It knows nothing of the rest."""
