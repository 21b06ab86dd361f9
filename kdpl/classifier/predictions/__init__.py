"""Predictions of many images on their way out: to the terminal, tables, a gallery, and folders by class."""
