"""What a run keeps on disk: checkpoints and models in Hugging Face's format."""
