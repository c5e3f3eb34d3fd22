"""Permuted CIFAR-10: can a network, or a K-matrix before it, undo a fixed permutation of the pixels?"""
