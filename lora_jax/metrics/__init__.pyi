from .predictions import Prediction as Prediction
from .predictions import Predictions as Predictions
from .predictions import load_predictions as load_predictions
from .predictions import save_predictions as save_predictions
from .score import Score as Score
from .table import Metric as Metric
from .table import metric as metric
