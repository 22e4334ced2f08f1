"""The idea beside the paper: schedule, prediction, decisions, the two paths, losses."""
