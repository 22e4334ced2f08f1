"""`dynamicvit demo`: to be written."""
