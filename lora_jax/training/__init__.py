"""Training: losses, optimisers, steps, compilation, checkpoints and the loop that ties them
together.
"""
