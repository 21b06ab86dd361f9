"""A gallery of predictions, to sort, to filter, to check and to correct, in a browser."""

from kdpl.classifier.gallery.page import THUMBNAIL, read_thumbnail, thumbnail, write_gallery

__all__ = ["THUMBNAIL", "read_thumbnail", "thumbnail", "write_gallery"]
