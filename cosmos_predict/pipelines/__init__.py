"""What lies around `WorldModel.sample`: reading conditions from files, building a model from a checkpoint, writing clips.

May import everything but `training`; only `cli`, `scripts/` and `inference/` import it.
"""
