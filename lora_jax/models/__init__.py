"""Ordinary Linen models. They import nothing of this library: adapters and quantisation work on any
module.
"""
