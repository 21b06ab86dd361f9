"""Predictions of many images on their way to the terminal, tables, a gallery, and folders by class."""
