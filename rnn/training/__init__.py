"""Training of the masked RNN."""
