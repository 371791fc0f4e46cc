"""What frozen features are worth: the linear probe and kNN, collapse monitors, and pictures of them."""
