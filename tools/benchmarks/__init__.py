"""Measurements of whole training steps of the tasks' models."""
