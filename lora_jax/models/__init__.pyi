from .deberta import DebertaConfig as DebertaConfig
from .decoder import Decoder as Decoder
from .decoder_config import DecoderConfig as DecoderConfig
from .encoder import Encoder as Encoder
from .encoder_parts import EncoderConfig as EncoderConfig
from .t5 import T5 as T5
from .t5 import T5Config as T5Config
