"""One file for each stage of dvc.yaml: params and files in, files out. Their helpers live in folders, by subject."""
