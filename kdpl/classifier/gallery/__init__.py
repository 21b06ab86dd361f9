"""A gallery of predictions, to sort, to filter, to check and to correct, in a browser."""
