"""Fine-tuning and evaluation by the paper's protocol: GLUE and SQuAD.

Notable: an evaluation is a grid of independent cells (a task, a learning rate, a seed). A finished
cell is one file, so that a grid can be killed, shared between GPUs or tasks of an array, and made
larger, without anything being done twice. Nothing here knows how a model was pretrained: any folder
that Hugging Face's Auto classes load can be evaluated.
"""
