"""A task: a model, its base, its data and its loss, as one object that its caller holds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
