"""What several rooms use: optional packages, signals, distributed runs, files of weights."""
