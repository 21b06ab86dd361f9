"""From a folder of photos to a classifier: `kdpl fit`, `kdpl names`, `kdpl eval` and `kdpl export`."""
