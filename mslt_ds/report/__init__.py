"""What a plan, a run or a comparison looks like to a reader."""
