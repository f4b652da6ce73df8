"""Figures as values that JSON has."""

import math
from typing import Any


def without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with None (JSON's null) for figures that cannot be told: JSON has no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
