"""Where things run: storage, Ray sessions, capacity."""
