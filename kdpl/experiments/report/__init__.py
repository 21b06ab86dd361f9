"""Tables and figures of finished runs: base-to-new, cross-dataset, domain generalisation and few-shot."""
