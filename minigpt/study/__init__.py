"""Looking inside a model and its cache."""
