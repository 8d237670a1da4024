"""Multi-stage layerwise training of BERT-class encoders on DeepSpeed."""

__version__ = "0.1.0"
