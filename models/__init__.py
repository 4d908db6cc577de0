"""Networks and their maths. Constructors take numbers and modules, never a configuration."""
