from .custom import custom_task as custom_task
from .generated import generate_predictions as generate_predictions
from .heads import classifier_loss as classifier_loss
from .losses import Losses as Losses
from .opening import open_task as open_task
from .predictions import predict as predict
from .predictions import scores_of as scores_of
from .task import Task as Task
