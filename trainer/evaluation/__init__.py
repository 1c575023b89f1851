"""How good is a network: on films nobody trained on, through the worker's own code."""

from trainer.evaluation.evaluate import Extras, evaluate_bundle, evaluate_run, evaluate_runs

__all__ = ["Extras", "evaluate_bundle", "evaluate_run", "evaluate_runs"]
