"""A classifier without this package: as an ONNX file, and as a folder that serves itself."""
