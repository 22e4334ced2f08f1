"""`dynamicvit visualize`: to be written."""
