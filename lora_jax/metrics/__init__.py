"""How good: scores with a direction and a unit, and what computes them."""
