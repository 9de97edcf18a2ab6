"""Settings: a ConfigDict becomes frozen dataclasses here, once, or an error that says what to write
instead.

`load_config` is the door of every command. Nothing below it sees a dict.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
