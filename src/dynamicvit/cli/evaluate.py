"""`dynamicvit evaluate`: to be written."""
