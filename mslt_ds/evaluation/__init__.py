"""Evaluation: fine-tuning on GLUE and SQuAD by the paper's protocol, and held-out loss.

Fine-tuning is a grid of independent cells: a task, a learning rate and a seed. Each finished cell
is one file, so a grid can be killed, shared between GPUs or the tasks of a Slurm array, and extended
later, and no cell is computed twice. The package doesn't depend on how a model was pretrained: it
evaluates any folder that Hugging Face's Auto classes load.
"""
