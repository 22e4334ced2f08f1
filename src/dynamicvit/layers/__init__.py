"""What backbones and methods are made of: tokens, attention under a decision, pooling."""
