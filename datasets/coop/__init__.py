"""The data sets of the CoOp family: catalogue, lists of images, splits and archives."""
