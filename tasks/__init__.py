"""What each task adds to dr2net: datasets, transforms and checkpoint formats for OpenMMLab."""
