"""The recipe's keys and their types, and strict YAML."""
