"""`kdpl open`: photos in groups by name, in the browser, by names that one changes while looking."""
