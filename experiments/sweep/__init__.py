"""The sweep: which split, policy and settings suit these images, by successive halving with Optuna."""
