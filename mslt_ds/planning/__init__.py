"""`mslt-ds plan`: a recipe's stages, what they cost, and how long they take."""
