"""Products with frozen and low-rank weights, with backward passes written out."""
