from .evaluation import evaluate as evaluate
from .memory import fit_budget as fit_budget
from .own_model import Fitted as Fitted
from .own_model import fit as fit
from .result import RunResult as RunResult
from .run import Diverged as Diverged
from .step import TrainState as TrainState
from .variants import prune as prune
