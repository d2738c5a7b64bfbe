"""Commands of the project; see each file."""
