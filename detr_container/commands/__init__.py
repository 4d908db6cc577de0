"""The command line: each command is parsed and calls one function."""
