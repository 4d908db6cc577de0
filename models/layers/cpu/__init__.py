"""What a CPU computes in a way of its own, because PyTorch's is slow or unsafe there; the layers choose by device.

The numbers are those of the plain formulas; only dropout draws other bits than PyTorch's.
"""
