from .beam import BeamSearch as BeamSearch
from .beam import beam_search as beam_search
from .engine import Generator as Generator
from .sampling import Sampling as Sampling
from .text import TextGenerator as TextGenerator
