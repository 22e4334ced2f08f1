"""`dynamicvit bench`: to be written."""
