"""What a GPU computes in a way of its own, because PyTorch's is slow or plans it anew for every shape.

The numbers are those of the plain formulas; where a kernel cannot be had, PyTorch's own are used, and the log says why.
"""
