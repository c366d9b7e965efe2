"""The ONNX file: conversion, writing it with its evidence, running it, smaller variants, gradients through its graph.

Not here: attacks on the file (attacks/onnx_file.py).
May import: common.
"""
