"""The parts that backbones and heads are made of."""
