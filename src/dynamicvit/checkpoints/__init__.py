"""Load whatever a user names."""
