"""How well scores rank clicks above non-clicks: in bins, exactly, and within groups."""
