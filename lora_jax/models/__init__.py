"""Ordinary Linen models. They import nothing of this library: adapters and quantisation work on any
module.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
