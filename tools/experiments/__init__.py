"""The study of what finetuning as a Dr²Net costs in accuracy, on real pretrained weights."""
