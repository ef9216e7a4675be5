"""Training: schedules, EMA, optimizers, gradient clipping and the loop that uses them.

On top of models, checkpoint and parallel; knows nothing of pipelines. Only command lines and experiments import it.
"""
