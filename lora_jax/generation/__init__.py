"""Generation: sampling, beam search, texts in and texts out, one base with many adapters."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
