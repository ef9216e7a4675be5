"""The error classes of the package. Imports nothing of it; everything may import it.

A message names the thing, its value, what was expected, and what to do. Command lines print it without a traceback.
"""


class CosmosPredictError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(CosmosPredictError, ValueError):
    """A configuration, override, option or size that does not fit."""


class CheckpointError(CosmosPredictError, ValueError):
    """A checkpoint whose keys, shapes or layout are not what the network needs."""


class UnsafeFileError(CosmosPredictError, ValueError):
    """A file that would have to run code in order to be read."""


class CorruptFileError(CosmosPredictError, OSError):
    """A file that is truncated, damaged, or not of the kind its name says."""


class DataError(CosmosPredictError, ValueError):
    """A dataset, clip, caption or annotation that cannot be used."""


class UnavailableError(CosmosPredictError, ConnectionError):
    """A service that all further work needs and that does not answer any more: the work ends and can be continued."""


class MissingDependencyError(CosmosPredictError, ImportError):
    """An optional package that the requested feature needs and that is not installed."""
