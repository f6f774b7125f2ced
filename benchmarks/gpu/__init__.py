"""Is the library right on a GPU, how fast is it there, and what comes out on CIFAR-10.

``python -m benchmarks.gpu --help`` says how it is called. Without a GPU the same code runs at tiny
size, so that it is ready when there is one.
"""
