"""One run from its settings to weights and predictions: module, trainer, checkpoints, loggers."""
