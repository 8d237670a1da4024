"""A recipe, read and checked: its configuration, plan and DeepSpeed settings."""
