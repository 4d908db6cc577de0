"""Detection: from settings to models and data, training, evaluation, prediction, export."""
