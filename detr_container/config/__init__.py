"""What is trained, on what, and how: settings, their rules, and the named experiments."""
