"""GLUE: tasks, data, fine-tuning runs, submission."""
