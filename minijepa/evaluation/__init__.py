"""How good frozen features are: the linear probe and kNN, collapse monitors, and pictures of features."""
