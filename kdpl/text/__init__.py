"""Texts and their features: prompts, sentences, vocabularies."""
