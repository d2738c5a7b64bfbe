"""The demos: what they generate, train and draw."""
