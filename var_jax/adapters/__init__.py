"""Small sets of parameters that change a trained model without editing it."""
