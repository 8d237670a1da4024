"""Tables made of what a run wrote down about itself."""
