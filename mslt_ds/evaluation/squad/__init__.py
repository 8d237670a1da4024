"""SQuAD: questions, windows, answers, scores."""
