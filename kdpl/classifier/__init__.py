"""Learned prompts in use: bundle, classifier, export, gallery."""
