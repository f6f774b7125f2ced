"""What each operation does to mean and variance per channel: a file for each family."""
