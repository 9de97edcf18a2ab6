"""Arrays and pytrees: paths, boxes, quantised weights, low-rank factors; no Linen module."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
