"""How sure a score is, whether two differ, and where the spread comes from. Numbers in, numbers
out: nothing of ours is imported.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
