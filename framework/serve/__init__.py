"""A local page and JSON endpoints that write reports of images with the models of runs."""
