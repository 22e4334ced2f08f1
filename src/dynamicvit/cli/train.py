"""`dynamicvit train`: to be written."""
