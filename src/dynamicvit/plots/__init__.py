"""Pictures and plots; matplotlib is imported where one is drawn."""
