"""What an operator sets: the settings, and what is said of mistakes in them."""
