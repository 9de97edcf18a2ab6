"""What trained and quantised weights look like, measured."""
