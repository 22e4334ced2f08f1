"""Models that are Hugging Face transformers' own kind; imported only where transformers is."""
