"""From records to batches, numpy only: `load` reads a data set by a recipe, `encode` makes token ids
of it, `Batches` pads them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
