"""Adapter of the AgiBot windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from cosmos_predict.data.agibot import split_windows
from tests.goldens.run_case import Case, adapter


@adapter("data", "agibot_windows")
def data_agibot_windows(case: Case) -> dict[str, Any]:
    windows = [
        window
        for row in case.call["rows"]
        for window in split_windows(row["duration"], row["window_size"], row["min_last_window"])
    ]
    return {
        "starts": np.array([window.start for window in windows]),
        "lengths": np.array([window.length for window in windows]),
    }
