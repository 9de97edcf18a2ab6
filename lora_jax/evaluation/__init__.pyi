from .comparison import compare as compare
from .comparison import intervals as intervals
