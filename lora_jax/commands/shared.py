"""What commands share: a config's arguments, the settings shown when a run starts, how tables are
printed.
"""

from __future__ import annotations
