"""Optimizers that are exact under ZeRO, and DeepSpeed's optimizer state by parameter name."""
