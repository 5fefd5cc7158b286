"""From a trained network to a smaller one of nearly the same answers: measured, planned, fitted, refined, without labels."""
