"""Prompts, templates, vocabularies, and cached text features."""
