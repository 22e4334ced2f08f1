"""What a model is worth: accuracy, speed, and the comparison with other methods."""
